// One active-set Newton step of the LASSO per item: find the support, solve on it, drop what got the wrong sign, repeat.
// See support_newton.py, whose plain torch is the definition.
#include <algorithm>
#include <cmath>
#include <vector>

#include "simd.h"

#define L2O_EXPORT extern "C" __attribute__((visibility("default"))) void

namespace l2o {

struct SupportArguments {
    int64_t items, n, limit, rounds, threads, gram_stride;
    double step;
    const void *gram, *correlation, *strength, *x, *gradient;
    void *next, *next_gradient, *size;
};

// Overwrites the upper triangle of M, whose rows are `stride` apart, by R with RᵀR = M. Left-looking by rows, four at a
// time: a row stays in registers' reach while all above it are subtracted. Left of the diagonal is garbage.
template <class T> bool cholesky(T* m, long size, long stride) {
    constexpr long lanes = Simd<T>::lanes;
    for (long k = 0; k < size; ++k) {
        T* row = m + k * stride;
        const long first = k / lanes * lanes;
        long i = 0;
        for (; i + 4 <= k; i += 4) {
            const T *a = m + i * stride, *b = a + stride, *c = b + stride, *d = c + stride;
            const T fa = a[k], fb = b[k], fc = c[k], fd = d[k];
            for (long j = first; j < size; j += lanes)
                store<T>(row + j, load<T>(row + j) - fa * load<T>(a + j) - fb * load<T>(b + j) - fc * load<T>(c + j) -
                                      fd * load<T>(d + j));
        }
        for (; i < k; ++i) {
            const T* above = m + i * stride;
            const T factor = above[k];
            for (long j = first; j < size; j += lanes) store<T>(row + j, load<T>(row + j) - factor * load<T>(above + j));
        }
        if (!(row[k] > (sizeof(T) == 4 ? T(1e-5) : T(1e-11)))) return false;  // columns dependent to working precision
        const T scale = 1 / std::sqrt(row[k]);
        for (long j = first; j < size; j += lanes) store<T>(row + j, load<T>(row + j) * scale);
    }
    return true;
}

// Overwrites v by the solution of RᵀR z = v.
template <class T> void solve(const T* r, long size, long stride, T* v) {
    for (long k = 0; k < size; ++k) {
        const T* row = r + k * stride;
        v[k] /= row[k];
        const T factor = v[k];
#pragma omp simd
        for (long j = k + 1; j < size; ++j) v[j] -= factor * row[j];
    }
    for (long k = size - 1; k >= 0; --k) {
        const T* row = r + k * stride;
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long j = k + 1; j < size; ++j) sum += row[j] * v[j];
        v[k] = (v[k] - sum) / row[k];
    }
}

// out += Σ_k values[k] · row support[k] of the Gram matrix, a tile of the output in registers.
template <class T> void add_rows(const T* gram, long n, const int* support, const T* values, long size, T* out) {
    constexpr long lanes = Simd<T>::lanes, width = 8;
    long j = 0;
    for (; j + width * lanes <= n; j += width * lanes) {
        Vec<T> sums[width];
        UNROLL for (int w = 0; w < width; ++w) sums[w] = load<T>(out + j + w * lanes);
        for (long k = 0; k < size; ++k) {
            const T *row = gram + support[k] * n + j, factor = values[k];
            UNROLL for (int w = 0; w < width; ++w) sums[w] += factor * load<T>(row + w * lanes);
        }
        UNROLL for (int w = 0; w < width; ++w) store<T>(out + j + w * lanes, sums[w]);
    }
    for (long k = 0; k < size; ++k) {
        const T *row = gram + support[k] * n, factor = values[k];
#pragma omp simd
        for (long i = j; i < n; ++i) out[i] += factor * row[i];
    }
}

template <class T> struct Item {
    const SupportArguments& a;
    const long stride;
    std::vector<int> support;
    std::vector<T> sign, values, matrix;

    explicit Item(const SupportArguments& a)
        : a(a), stride((a.limit + Simd<T>::lanes - 1) / Simd<T>::lanes * Simd<T>::lanes), support(a.n + 1),
          sign(a.n + 1), values(a.n + 1), matrix(stride * a.limit) {}

    long find(const T* x, const T* gradient, T strength) {
        const T step = a.step, threshold = step * strength;
        long size = 0;
        for (long i = 0; i < a.n; ++i) {
            const T v = x[i] - step * gradient[i];
            support[size] = i;
            sign[size] = v > 0 ? 1 : -1;
            size += std::fabs(v) > threshold;
        }
        return size;
    }

    // Returns the size of the support on which all signs are right, or −1 where there is no solution.
    long newton(const T* gram, const T* correlation, T strength, long size) {
        for (long round = 0; round < a.rounds; ++round) {
            for (long k = 0; k < size; ++k)
                for (long j = k; j < size; ++j) matrix[k * stride + j] = gram[support[k] * a.n + support[j]];
            if (!cholesky(matrix.data(), size, stride)) return -1;
            for (long k = 0; k < size; ++k) values[k] = correlation[support[k]] - strength * sign[k];
            solve(matrix.data(), size, stride, values.data());
            long kept = 0;
            for (long k = 0; k < size; ++k) {
                values[kept] = values[k];
                support[kept] = support[k];
                sign[kept] = sign[k];
                kept += values[k] * sign[k] > 0;
            }
            if (kept == size) break;
            size = kept;
        }
        return size;
    }

    void run(long i) {
        const T *gram = (const T*)a.gram + i * a.gram_stride, *correlation = (const T*)a.correlation + i * a.n;
        const T *x = (const T*)a.x + i * a.n, *gradient = (const T*)a.gradient + i * a.n;
        T *next = (T*)a.next + i * a.n, *next_gradient = (T*)a.next_gradient + i * a.n;
        const T strength = ((const T*)a.strength)[i];
        long size = find(x, gradient, strength);
        size = size > a.limit ? -1 : newton(gram, correlation, strength, size);
        ((int32_t*)a.size)[i] = size;
        if (size < 0) {
            std::copy(x, x + a.n, next);
            std::copy(gradient, gradient + a.n, next_gradient);
            return;
        }
        std::fill(next, next + a.n, T(0));
        for (long k = 0; k < size; ++k) next[support[k]] = values[k];
        for (long j = 0; j < a.n; ++j) next_gradient[j] = -correlation[j];
        add_rows(gram, a.n, support.data(), values.data(), size, next_gradient);
    }
};

template <class T> void support_newton(const SupportArguments& a) {
    [[maybe_unused]] const int threads = std::max<long>(1, std::min(a.threads, a.items));
#pragma omp parallel num_threads(threads)
    {
        Item<T> item(a);
#pragma omp for schedule(dynamic, 4)
        for (long i = 0; i < a.items; ++i) item.run(i);
    }
}

}  // namespace l2o

L2O_EXPORT l2o_support_newton_float32(const l2o::SupportArguments* a) { l2o::support_newton<float>(*a); }
L2O_EXPORT l2o_support_newton_float64(const l2o::SupportArguments* a) { l2o::support_newton<double>(*a); }
