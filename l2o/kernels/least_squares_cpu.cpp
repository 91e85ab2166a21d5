// f(x) = ‖A x − b‖² and its gradient 2 Aᵀ (A x − b) for a batch of small matrices. Every sum is made in the same order
// whatever the number of threads is.
#include <algorithm>

#include "simd.h"

// Packed by l2o/kernels/least_squares.py. A is (batch, rows, columns), b is (batch, rows), x and the gradients are
// (batch, columns), losses are (batch,); all contiguous.
struct LeastSquaresArguments {
    int64_t batch, rows, columns, threads;
    const void *a, *b, *x;
    void *losses, *gradients;
};

namespace l2o {

// A vector from the first `count` numbers, and zeros; and back.
template <class T> ALWAYS_INLINE Vec<T> load_first(const T* at, long count) {
#ifdef __AVX512F__
    const unsigned mask = count >= Simd<T>::lanes ? ~0u : (1u << count) - 1;
    if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_ps(mask, at);
    if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_maskz_loadu_pd(mask, at);
#endif
    T all[Simd<T>::lanes] = {};
    std::copy(at, at + std::min<long>(Simd<T>::lanes, count), all);
    return load<T>(all);
}
template <class T> ALWAYS_INLINE void store_first(T* at, Vec<T> x, long count) {
#ifdef __AVX512F__
    const unsigned mask = count >= Simd<T>::lanes ? ~0u : (1u << count) - 1;
    if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(at, mask, (__m512)x);
    if constexpr (sizeof(T) == 8) return _mm512_mask_storeu_pd(at, mask, (__m512d)x);
#endif
    T all[Simd<T>::lanes];
    store<T>(all, x);
    std::copy(all, all + std::min<long>(Simd<T>::lanes, count), at);
}

// A x − b for as many rows as there are lanes: their products side by side, whose lanes are then summed all at once.
// In the place of rows past the end stands the last one, so that the products stay in registers; their residual is 0.
template <class T> ALWAYS_INLINE Vec<T> residuals(const T* a, const T* x, const T* b, long rows, long columns) {
    constexpr int lanes = Simd<T>::lanes;
    Vec<T> products[lanes] = {};
    for (long c = 0; c < columns; c += lanes) {
        const Vec<T> part = load_first<T>(x + c, columns - c);
        UNROLL
        for (int r = 0; r < lanes; ++r)
            products[r] += load_first<T>(a + std::min<long>(r, rows - 1) * columns + c, columns - c) * part;
    }
    T sums[lanes] = {}, first[lanes];
    add_lane_sums<T, lanes>(sums, products);
    store<T>(first, load<T>(sums) - load_first<T>(b, rows));
    return load_first<T>(first, rows);
}

template <class T> ALWAYS_INLINE T one_item(const T* a, const T* x, const T* b, T* gradient, long rows, long columns) {
    constexpr int lanes = Simd<T>::lanes;
    Vec<T> squares{};
    for (long first = 0; first < rows; first += lanes) {
        const long count = std::min<long>(lanes, rows - first);
        const T* part = a + first * columns;
        const Vec<T> residual = residuals<T>(part, x, b + first, count, columns);
        squares += residual * residual;
        T twice[lanes];
        store<T>(twice, T(2) * residual);
        for (long c = 0; c < columns; c += lanes) {
            Vec<T> sum = first ? load_first<T>(gradient + c, columns - c) : Vec<T>{};
            for (long r = 0; r < count; ++r) sum += twice[r] * load_first<T>(part + r * columns + c, columns - c);
            store_first<T>(gradient + c, sum, columns - c);
        }
    }
    T loss = 0;
    for (int k = 0; k < lanes; ++k) loss += squares[k];
    return loss;
}

template <class T> void least_squares(const LeastSquaresArguments& s) {
    const long rows = s.rows, columns = s.columns;
    // Waking a thread takes some microseconds, as do this many multiplications.
    constexpr long share = 1 << 16;
    const long useful = s.batch * rows * columns / share;
    [[maybe_unused]] const int threads = std::max<long>(1, std::min<long>({s.threads, s.batch, useful}));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < s.batch; ++i)
        ((T*)s.losses)[i] = one_item<T>((const T*)s.a + i * rows * columns, (const T*)s.x + i * columns,
                                        (const T*)s.b + i * rows, (T*)s.gradients + i * columns, rows, columns);
}

}  // namespace l2o

extern "C" __attribute__((visibility("default"))) void l2o_least_squares_float32(const LeastSquaresArguments* s) {
    l2o::least_squares<float>(*s);
}
extern "C" __attribute__((visibility("default"))) void l2o_least_squares_float64(const LeastSquaresArguments* s) {
    l2o::least_squares<double>(*s);
}
