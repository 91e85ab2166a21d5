// The elementwise work of a safeguarded FISTA step of the LASSO, all of an item in one pass over memory.
// See fista_step.py, whose plain torch is the definition.
#include <cmath>
#include <cstdint>

#define L2O_EXPORT extern "C" __attribute__((visibility("default"))) void

namespace l2o {

struct LookAhead {
    int64_t items, n, threads;
    const void *x, *previous, *gradient, *previous_gradient, *weight, *step, *strength;
    void *z, *residual, *size, *uphill;
};

struct Change {
    int64_t items, n, threads;
    const void *x, *gradient, *z, *z_gradient, *strength;
    void* change;
};

// NaN comes out where it went in: both comparisons are false.
template <class T> inline T shrink(T v, T by) { return v - (v > by ? by : v < -by ? -by : v); }

template <class T> void look_ahead(const LookAhead& a) {
    [[maybe_unused]] const int threads = a.threads;
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < a.items; ++i) {
        const T *x = (const T*)a.x + i * a.n, *previous = (const T*)a.previous + i * a.n;
        const T *g = (const T*)a.gradient + i * a.n, *previous_g = (const T*)a.previous_gradient + i * a.n;
        const T w = ((const T*)a.weight)[i], s = ((const T*)a.step)[i], by = s * ((const T*)a.strength)[i];
        T *z = (T*)a.z + i * a.n, residual = 0, size = 0, uphill = 0;
#pragma omp simd reduction(+ : residual, size, uphill)
        for (long j = 0; j < a.n; ++j) {
            const T moved = x[j] - shrink(x[j] - s * g[j], by);
            const T v = x[j] + w * (x[j] - previous[j]);
            const T next = shrink(v - s * (g[j] + w * (g[j] - previous_g[j])), by);
            residual += moved * moved;
            size += x[j] * x[j];
            uphill += (v - next) * (next - x[j]);
            z[j] = next;
        }
        ((T*)a.residual)[i] = residual;
        ((T*)a.size)[i] = size;
        ((T*)a.uphill)[i] = uphill;
    }
}

template <class T> void change(const Change& a) {
    [[maybe_unused]] const int threads = a.threads;
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < a.items; ++i) {
        const T *x = (const T*)a.x + i * a.n, *g = (const T*)a.gradient + i * a.n;
        const T *z = (const T*)a.z + i * a.n, *z_g = (const T*)a.z_gradient + i * a.n;
        T smooth = 0, norm = 0;
#pragma omp simd reduction(+ : smooth, norm)
        for (long j = 0; j < a.n; ++j) {
            smooth += (g[j] + z_g[j]) * (z[j] - x[j]);
            norm += std::fabs(z[j]) - std::fabs(x[j]);
        }
        ((T*)a.change)[i] = T(0.5) * smooth + ((const T*)a.strength)[i] * norm;
    }
}

}  // namespace l2o

L2O_EXPORT l2o_look_ahead_float32(const l2o::LookAhead* a) { l2o::look_ahead<float>(*a); }
L2O_EXPORT l2o_look_ahead_float64(const l2o::LookAhead* a) { l2o::look_ahead<double>(*a); }
L2O_EXPORT l2o_change_float32(const l2o::Change* a) { l2o::change<float>(*a); }
L2O_EXPORT l2o_change_float64(const l2o::Change* a) { l2o::change<double>(*a); }
