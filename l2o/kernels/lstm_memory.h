// What the kernels are given and where it goes: the arguments that Python packs, rows between the state in memory and
// blocks of coordinates, and scratch memory.
#pragma once
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <memory>

#include "lstm_tape.h"

// Packed by l2o/kernels/lstm_cpu.py. State arrays are (layers, units, n), grads and cotangents (steps, n); all
// contiguous, of the type of the function called. Those marked * may be null. After the struct come the pointers to the
// weights of all layers, the biases and, for sequence_vjp, their gradients.
struct Arguments {
    int64_t n, steps, layers, units, threads, logarithm;
    double p, log_eps, scale, forget_bias;
    const void *grads, *hidden, *cell, *output_weight, *output_bias;
    void *updates, *next_hidden, *next_cell;               // step only
    const void *cotangents, *d_next_hidden, *d_next_cell;  // sequence_vjp only: given; the last two *
    void *d_output_weight, *d_output_bias, *d_grads, *d_hidden, *d_cell;  // sequence_vjp only: results; the last three *

    template <class T> T* const* of_layers(int which) const { return (T* const*)(this + 1) + which * layers; }
    template <class T> const T* const* weights() const { return of_layers<const T>(0); }
    template <class T> const T* const* biases() const { return of_layers<const T>(1); }
    template <class T> T* const* d_weights() const { return of_layers<T>(2); }
    template <class T> T* const* d_biases() const { return of_layers<T>(3); }
};

namespace l2o {

// `width` numbers of a row, of which the first `count` exist and the others are zero.
template <class T, int width = kBlock<T>> inline void load_row(T* to, const T* from, long count) {
    if (count == width)
        std::memcpy(to, from, width * sizeof(T));
    else
        std::fill(std::copy(from, from + count, to), to + width, T(0));
}
template <class T, int width = kBlock<T>> inline void store_row(T* to, const T* from, long count) {
    if (count == width)
        std::memcpy(to, from, width * sizeof(T));
    else
        std::copy(from, from + count, to);
}

// The upper half of a float: same range, 8 bits of precision.
struct BFloat16 {
    uint16_t bits;
};
template <class T, int width> inline void load_row(T* to, const BFloat16* from, long count) {
    uint32_t wide[width] = {};
    for (long k = 0; k < count; ++k) wide[k] = uint32_t(from[k].bits) << 16;
    std::memcpy(to, wide, sizeof wide);
}
// Rounds to nearest, ties to even, in place too: what the layer above reads is what is stored.
template <class T, int width> inline void store_row(BFloat16* to, T* from, long count) {
    uint32_t wide[width];
    std::memcpy(wide, from, sizeof wide);
    for (int k = 0; k < width; ++k) {
        const uint32_t rounded = wide[k] + 0x7fff + (wide[k] >> 16 & 1);
        wide[k] = ((wide[k] & 0x7fffffff) > 0x7f800000 ? wide[k] | 0x400000 : rounded) & 0xffff0000;  // NaN stays NaN
    }
    std::memcpy(from, wide, sizeof wide);
    for (long k = 0; k < count; ++k) to[k].bits = wide[k] >> 16;
}

template <class T, int width = kBlock<T>, class S = T>
void load_rows(Rows<T> to, const S* from, long n, long rows, long count) {
    for (long r = 0; r < rows; ++r) load_row<T, width>(to[r], from + r * n, count);
}
template <class T, int width = kBlock<T>, class S = T>
void store_rows(S* to, Rows<T> from, long n, long rows, long count) {
    for (long r = 0; r < rows; ++r) store_row<T, width>(to + r * n, from[r], count);
}

// A buffer that a thread keeps between calls: faulting in fresh pages costs as much as the arithmetic.
inline void* scratch(size_t bytes) {
    static thread_local std::unique_ptr<void, decltype(&std::free)> buffer{nullptr, &std::free};
    static thread_local size_t size = 0;
    if (size < bytes) {
        size = (bytes + 4095) / 4096 * 4096;
        buffer.reset(std::aligned_alloc(64, size));
    }
    return buffer.get();
}

// Ask for huge pages under a large fresh array: faulting it in by small ones takes longer than the step that fills it.
inline void use_huge_pages([[maybe_unused]] void* array, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t page = 2 << 20;
    const uintptr_t begin = ((uintptr_t)array + page - 1) / page * page, end = ((uintptr_t)array + bytes) / page * page;
    if (begin + page < end) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
#endif
}

template <class T> Network<T> network_of(const Arguments& a, bool backward) {
    Constants<T> constants{a.logarithm != 0, T(a.p),     T(std::exp(-a.p)),
                           T(a.log_eps),     T(a.scale), T(a.forget_bias)};
    return {constants, int(a.units), int(a.layers), a.weights<T>(), a.biases<T>(),
            (const T*)a.output_weight, (const T*)a.output_bias, backward};
}

}  // namespace l2o
