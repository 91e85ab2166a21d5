// Vectors over coordinates: one lane is one coordinate. gcc vector extensions, with AVX-512 intrinsics where they are
// shorter. Nothing here relies on -ffast-math: NaN and infinity come out where they went in.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace l2o {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <class T> struct Simd;
template <> struct Simd<float> {
    typedef float Vec __attribute__((vector_size(kBytes)));
    typedef int32_t Int __attribute__((vector_size(kBytes)));
    static constexpr int lanes = kBytes / 4, mantissa_bits = 23;
    static constexpr int32_t sqrt_half_bits = 0x3f3504f3;
    static constexpr float magic = 0x1.8p23f, tiny = 0x1p-126f;
};
template <> struct Simd<double> {
    typedef double Vec __attribute__((vector_size(kBytes)));
    typedef int64_t Int __attribute__((vector_size(kBytes)));
    static constexpr int lanes = kBytes / 8, mantissa_bits = 52;
    static constexpr int64_t sqrt_half_bits = 0x3fe6a09e667f3bcd;
    static constexpr double magic = 0x1.8p52, tiny = 0x1p-1022;
};
template <class T> using Vec = typename Simd<T>::Vec;
template <class T> using Int = typename Simd<T>::Int;

template <class T> inline Vec<T> load(const T* at) {
    Vec<T> x;
    std::memcpy(&x, at, sizeof x);
    return x;
}
template <class T> inline void store(T* at, Vec<T> x) { std::memcpy(at, &x, sizeof x); }
template <class T> inline Vec<T> broadcast(T x) { return x - Vec<T>{}; }  // x - 0, unlike x + 0, keeps −0

// A NaN fails every comparison, so it survives.
template <class T> inline Vec<T> clamp(Vec<T> x, T low, T high) {
#ifdef __AVX512F__
    // max and min return their second operand when one of them is NaN.
    if constexpr (sizeof(T) == 4)
        return (Vec<T>)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)x));
#endif
    x = x < low ? broadcast<T>(low) : x;
    return x > high ? broadcast<T>(high) : x;
}

// 1 / x for positive normal x. AVX-512: 14 bits and one Newton step, relative error below 1.2e-7.
template <class T> inline Vec<T> reciprocal(Vec<T> x) {
#ifdef __AVX512F__
    if constexpr (sizeof(T) == 4) {
        Vec<T> guess = (Vec<T>)_mm512_rcp14_ps((__m512)x);
        return guess * (2.0f - x * guess);
    }
#endif
    return T(1) / x;
}

// e^{factor x}, with factor x clamped to ±80 (float) or ±700 (double): finite, and 1 + e^… has a normal reciprocal.
// float: 2^n times a minimax polynomial of 2^f on |f| ≤ ½ with constant term 1, relative error 9.2e-8.
// double: Cody-Waite reduction and the Taylor series to r^13 on |r| ≤ ln2 / 2, remainder 5e-18.
template <int factor> inline Vec<float> exp_of(Vec<float> x) {
    constexpr float per_log2 = factor * 1.44269504088896341f;
    constexpr float bound = 80.0f / (factor < 0 ? -factor : factor);
    x = clamp<float>(x, -bound, bound);
    Vec<float> shifted = x * per_log2 + Simd<float>::magic;  // the low bits are n = round(x log2 e)
    Vec<float> f = x * per_log2 - (shifted - Simd<float>::magic);
    Vec<float> y = 0x1.5bba1349efb50p-10f * f + 0x1.3cea874a3ca70p-7f;
    y = y * f + 0x1.c6b752e01b51cp-5f;
    y = y * f + 0x1.ebf9bb8a817dfp-3f;
    y = y * f + 0x1.62e42920369edp-1f;
    y = y * f + 1.0f;
    return (Vec<float>)((Int<float>)y + ((Int<float>)shifted << 23));
}
template <int factor> inline Vec<double> exp_of(Vec<double> x) {
    x = clamp<double>(x * double(factor), -700, 700);
    Vec<double> shifted = x * 1.44269504088896341 + Simd<double>::magic;
    Vec<double> n = shifted - Simd<double>::magic;
    Vec<double> r = x - n * 0x1.62e42fefa38p-1;  // exact: the constant ends in zeros
    r -= n * 0x1.ef35793c7673p-45;
    Vec<double> y = broadcast<double>(1.0 / 6227020800.0);
    constexpr double inverse_factorial[] = {1.0,          1.0,           1.0 / 2,        1.0 / 6,       1.0 / 24,
                                            1.0 / 120,    1.0 / 720,     1.0 / 5040,     1.0 / 40320,   1.0 / 362880,
                                            1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600};
    for (int k = 12; k >= 0; --k) y = y * r + inverse_factorial[k];
    return (Vec<double>)((Int<double>)y + ((Int<double>)shifted << 52));
}

template <class T> inline Vec<T> sigmoid(Vec<T> x) { return reciprocal<T>(T(1) + exp_of<-1>(x)); }
// 2σ(2x) − 1: absolute error 1.5e-7 in float, exact at 0.
template <class T> inline Vec<T> tanh(Vec<T> x) { return T(2) * reciprocal<T>(T(1) + exp_of<-2>(x)) - T(1); }

// log x for x > 0: x = 2^e m with m in [√½, √2), log m = 2 artanh((m − 1) / (m + 1)) as a series. Infinity and NaN stay.
template <class T> inline Vec<T> log(Vec<T> x) {
    constexpr int terms = sizeof(T) == 4 ? 6 : 13;
    auto subnormal = x < Simd<T>::tiny;
    Vec<T> normal = subnormal ? x * T(0x1p64) : x;
    Int<T> bits = (Int<T>)normal - Simd<T>::sqrt_half_bits;
    Int<T> exponent = bits >> Simd<T>::mantissa_bits;
    Vec<T> m = (Vec<T>)((Int<T>)normal - (exponent << Simd<T>::mantissa_bits));
    Vec<T> e = __builtin_convertvector(exponent, Vec<T>);
    e = subnormal ? e - T(64) : e;
    Vec<T> s = (m - T(1)) / (m + T(1)), square = s * s, series{};
    for (int k = terms - 1; k >= 0; --k) series = series * square + T(1) / T(2 * k + 1);
    Vec<T> y = e * T(0.693147180559945309) + T(2) * s * series;
    return x < T(__builtin_inf()) ? y : x;
}

// Lane sums of 16 vectors at once: 15 steps, each adding two vectors by halves of their segments.
template <class T, int step, bool high, int... lane>
inline Vec<T> halves(Vec<T> a, Vec<T> b, std::integer_sequence<int, lane...>) {
    // Segment s of length 2·step (of a, then of b) gives its lower or upper half to segment s of length step.
#ifdef __clang__
    return __builtin_shufflevector(a, b, ((lane / step) * 2 * step + lane % step + (high ? step : 0))...);
#else
    return __builtin_shuffle(a, b, Int<T>{((lane / step) * 2 * step + lane % step + (high ? step : 0))...});
#endif
}
template <class T, int step, int count> inline __attribute__((always_inline)) void fold(Vec<T>* x) {
    using Lanes = std::make_integer_sequence<int, Simd<T>::lanes>;
    _Pragma("GCC unroll 32")
    for (int k = 0; k < count; ++k)
        x[k] = halves<T, step, false>(x[2 * k], x[2 * k + 1], Lanes{}) +
               halves<T, step, true>(x[2 * k], x[2 * k + 1], Lanes{});
    if constexpr (step > 1) fold<T, step / 2, count / 2>(x);
}
// sums[k] += Σ_lanes x[k] for k < count, where count is a multiple of the number of lanes. Destroys x.
template <class T, int count> inline void add_lane_sums(T* sums, Vec<T>* x) {
    constexpr int lanes = Simd<T>::lanes;
    static_assert(count % lanes == 0);
    _Pragma("GCC unroll 32")
    for (int k = 0; k < count; k += lanes) {
        fold<T, lanes / 2, lanes / 2>(x + k);
        store<T>(sums + k, load<T>(sums + k) + x[k]);
    }
}

}  // namespace l2o
