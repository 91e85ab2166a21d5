// C = A B for every member of a batch, where A has few rows: a narrow layer times a minibatch. BLAS libraries are made
// for squarer matrices. Every sum is made in the same order whatever the number of threads is.
#include <algorithm>

#include "simd.h"

// Packed by l2o/kernels/matmul.py. A is (batch, rows, inner), B is (batch, inner, columns) and C is contiguous. Strides
// are in numbers; those of B's fast axis and, where B is contiguous along `inner`, of A's `inner` are 1.
struct MatmulArguments {
    int64_t batch, rows, inner, columns, threads, along_inner;
    int64_t a_batch, a_row, a_inner, b_batch, b_line;
    const void *a, *b;
    void* c;
};

namespace l2o {

constexpr int kRows = 4, kDots = 4, kWide = 6;  // sums in flight: 4·4 or 4·6 of the 32 registers

// The first `count` numbers, and zeros.
template <class T> inline Vec<T> load_some(const T* at, long count) {
    T padded[Simd<T>::lanes] = {};
    std::copy(at, at + count, padded);
    return load<T>(padded);
}

template <class T> inline T total(Vec<T> x) {
#ifdef __AVX512F__
    if constexpr (sizeof(T) == 4) return _mm512_reduce_add_ps((__m512)x);
#endif
    T sum = 0;
    for (int k = 0; k < Simd<T>::lanes; ++k) sum += x[k];
    return sum;
}

// Sums over lines of B that are contiguous along the columns.
template <class T, int rows, int width> ALWAYS_INLINE void outer_tile(const MatmulArguments& m, const T* a, const T* b,
                                                                      T* c, long count) {
    constexpr int lanes = Simd<T>::lanes;
    const bool whole = count == width * lanes;
    Vec<T> sums[rows][width] = {};
    for (long k = 0; k < m.inner; ++k, a += m.a_inner, b += m.b_line) {
        Vec<T> line[width];
        UNROLL for (int w = 0; w < width; ++w)
            line[w] = width > 1 || whole ? load<T>(b + w * lanes) : load_some<T>(b, count);
        UNROLL for (int r = 0; r < rows; ++r)
            UNROLL for (int w = 0; w < width; ++w) sums[r][w] += a[r * m.a_row] * line[w];
    }
    UNROLL for (int r = 0; r < rows; ++r)
        UNROLL for (int w = 0; w < width; ++w) {
            T row[lanes];
            store<T>(row, sums[r][w]);
            std::copy(row, row + (width > 1 || whole ? lanes : count), c + r * m.columns + w * lanes);
        }
}

// Scalar products of rows of A with columns of B that are contiguous.
template <class T, int rows, int dots> ALWAYS_INLINE void dot_tile(const MatmulArguments& m, const T* a, const T* b,
                                                                   T* c) {
    constexpr int lanes = Simd<T>::lanes;
    Vec<T> sums[rows][dots] = {};
    long k = 0;
    for (; k + lanes <= m.inner; k += lanes) {
        Vec<T> left[rows], right[dots];
        UNROLL for (int r = 0; r < rows; ++r) left[r] = load<T>(a + r * m.a_row + k);
        UNROLL for (int d = 0; d < dots; ++d) right[d] = load<T>(b + d * m.b_line + k);
        UNROLL for (int r = 0; r < rows; ++r)
            UNROLL for (int d = 0; d < dots; ++d) sums[r][d] += left[r] * right[d];
    }
    if (k < m.inner)
        UNROLL for (int r = 0; r < rows; ++r)
            UNROLL for (int d = 0; d < dots; ++d)
                sums[r][d] += load_some<T>(a + r * m.a_row + k, m.inner - k) *
                              load_some<T>(b + d * m.b_line + k, m.inner - k);
    UNROLL for (int r = 0; r < rows; ++r)
        UNROLL for (int d = 0; d < dots; ++d) c[r * m.columns + d] = total<T>(sums[r][d]);
}

// A few rows times the columns [begin, end).
template <class T, int rows> void stripe(const MatmulArguments& m, const T* a, const T* b, T* c, long begin, long end) {
    constexpr int lanes = Simd<T>::lanes, width = kWide * lanes;
    long n = begin;
    if (m.along_inner) {
        for (; n + kDots <= end; n += kDots) dot_tile<T, rows, kDots>(m, a, b + n * m.b_line, c + n);
        for (; n < end; ++n) dot_tile<T, rows, 1>(m, a, b + n * m.b_line, c + n);
    } else {
        for (; n + width <= end; n += width) outer_tile<T, rows, kWide>(m, a, b + n, c + n, width);
        for (; n < end; n += lanes) outer_tile<T, rows, 1>(m, a, b + n, c + n, std::min<long>(lanes, end - n));
    }
}

template <class T> void matmul(const MatmulArguments& m) {
    // A panel of columns stays in the cache until all rows have been there.
    const long panel = m.along_inner ? 2 * kDots : kWide * Simd<T>::lanes;
    [[maybe_unused]] const int threads = std::max<long>(1, std::min<long>(m.threads, m.batch));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < m.batch; ++i) {
        const T *a = (const T*)m.a + i * m.a_batch, *b = (const T*)m.b + i * m.b_batch;
        T* c = (T*)m.c + i * m.rows * m.columns;
        for (long n = 0; n < m.columns; n += panel) {
            const long end = std::min<long>(n + panel, m.columns);
            long r = 0;
            for (; r + kRows <= m.rows; r += kRows) stripe<T, kRows>(m, a + r * m.a_row, b, c + r * m.columns, n, end);
            for (; r < m.rows; ++r) stripe<T, 1>(m, a + r * m.a_row, b, c + r * m.columns, n, end);
        }
    }
}

}  // namespace l2o

extern "C" __attribute__((visibility("default"))) void l2o_matmul_float32(const MatmulArguments* m) {
    l2o::matmul<float>(*m);
}
extern "C" __attribute__((visibility("default"))) void l2o_matmul_float64(const MatmulArguments* m) {
    l2o::matmul<double>(*m);
}
