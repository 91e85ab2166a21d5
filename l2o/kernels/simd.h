// Vectors over coordinates: one lane is one coordinate. gcc vector extensions, with AVX-512 intrinsics where they are
// shorter. Nothing here relies on -ffast-math: NaN and infinity come out where they went in.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")  // fully and early: an array that is indexed by a loop lives in memory

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
template <class T, int count> ALWAYS_INLINE void reciprocals(Vec<T> (&x)[count]) {
#ifdef __AVX512F__
    if constexpr (sizeof(T) == 4) {
        Vec<T> guess[count];
        UNROLL for (int k = 0; k < count; ++k) guess[k] = (Vec<T>)_mm512_rcp14_ps((__m512)x[k]);
        UNROLL for (int k = 0; k < count; ++k) x[k] = 2.0f - x[k] * guess[k];
        UNROLL for (int k = 0; k < count; ++k) x[k] = x[k] * guess[k];
        return;
    }
#endif
    UNROLL for (int k = 0; k < count; ++k) x[k] = T(1) / x[k];
}

// 2^x with x clamped so that 1 + 2^x is finite and has a normal reciprocal; 2^n times a polynomial in f, x = n + f.
// float: minimax in f on |f| ≤ ½ with constant term 1, relative error 9.2e-8. double: the Taylor series of e^{f ln 2} to
// the 13th power, remainder 5e-18. Several vectors go through each operation together: one alone would wait for its
// predecessor, and the processor does not look far enough ahead to find the others.
template <class T> struct Exp2;
template <> struct Exp2<float> {
    static constexpr float bound = 115, unit = 1;
    static constexpr float coefficients[] = {0x1.5bba1349efb50p-10f, 0x1.3cea874a3ca70p-7f, 0x1.c6b752e01b51cp-5f,
                                             0x1.ebf9bb8a817dfp-3f,  0x1.62e42920369edp-1f, 1};
};
template <> struct Exp2<double> {
    static constexpr double bound = 1000, unit = 0.693147180559945309;
    static constexpr double coefficients[] = {
        1 / 6227020800.0, 1 / 479001600.0, 1 / 39916800.0, 1 / 3628800.0, 1 / 362880.0, 1 / 40320.0, 1 / 5040.0,
        1 / 720.0,        1 / 120.0,       1 / 24.0,       1 / 6.0,       1 / 2.0,      1,           1};
};
template <class T, int count> ALWAYS_INLINE void exp2(Vec<T> (&x)[count]) {
    constexpr int terms = sizeof(Exp2<T>::coefficients) / sizeof(T);
    Vec<T> n[count], y[count];
#ifdef __AVX512DQ__
    constexpr bool scales = sizeof(T) == 4;  // one instruction for f, one for the power: the step is 4 % faster
#else
    constexpr bool scales = false;
#endif
    if constexpr (scales) {
#ifdef __AVX512DQ__
        UNROLL for (int k = 0; k < count; ++k)
            n[k] = (Vec<T>)_mm512_min_ps(_mm512_set1_ps(Exp2<T>::bound), (__m512)x[k]);  // NaN stays; no lower bound:
        UNROLL for (int k = 0; k < count; ++k) x[k] = (Vec<T>)_mm512_reduce_ps((__m512)n[k], 8);  // of −∞ it is 0,
        UNROLL for (int k = 0; k < count; ++k) n[k] = n[k] - x[k];                                // and 2^−∞ too
#endif
    } else {
        UNROLL for (int k = 0; k < count; ++k) x[k] = clamp<T>(x[k], -Exp2<T>::bound, Exp2<T>::bound);
        UNROLL for (int k = 0; k < count; ++k) n[k] = x[k] + Simd<T>::magic;  // the low bits are round(x)
        UNROLL for (int k = 0; k < count; ++k) y[k] = n[k] - Simd<T>::magic;
        UNROLL for (int k = 0; k < count; ++k) x[k] = x[k] - y[k];
    }
    if constexpr (sizeof(T) == 8)
        UNROLL for (int k = 0; k < count; ++k) x[k] *= Exp2<T>::unit;
    UNROLL for (int k = 0; k < count; ++k) y[k] = x[k] * Exp2<T>::coefficients[0] + Exp2<T>::coefficients[1];
    UNROLL for (int term = 2; term < terms; ++term)
        UNROLL for (int k = 0; k < count; ++k) y[k] = y[k] * x[k] + Exp2<T>::coefficients[term];
    if constexpr (scales) {
#ifdef __AVX512DQ__
        UNROLL for (int k = 0; k < count; ++k) x[k] = (Vec<T>)_mm512_scalef_ps((__m512)y[k], (__m512)n[k]);
#endif
    } else {
        UNROLL for (int k = 0; k < count; ++k)
            x[k] = (Vec<T>)((Int<T>)y[k] + ((Int<T>)n[k] << Simd<T>::mantissa_bits));
    }
}

// Replace each x = −z log2(e) by σ(z); x = −2z log2(e) gives σ(2z) = (1 + tanh z) / 2.
template <class T, int count> ALWAYS_INLINE void sigmoids(Vec<T> (&x)[count]) {
    exp2<T, count>(x);
    UNROLL for (int k = 0; k < count; ++k) x[k] = x[k] + T(1);
    reciprocals<T, count>(x);
}
constexpr double kLog2e = 1.44269504088896341;

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
template <class T, int step, int count> ALWAYS_INLINE void fold(Vec<T>* x) {
    using Lanes = std::make_integer_sequence<int, Simd<T>::lanes>;
    UNROLL
    for (int k = 0; k < count; ++k)
        x[k] = halves<T, step, false>(x[2 * k], x[2 * k + 1], Lanes{}) +
               halves<T, step, true>(x[2 * k], x[2 * k + 1], Lanes{});
    if constexpr (step > 1) fold<T, step / 2, count / 2>(x);
}
// sums[k] += Σ_lanes x[k] for k < count, where count is a multiple of the number of lanes. Destroys x.
template <class T, int count> inline void add_lane_sums(T* sums, Vec<T>* x) {
    constexpr int lanes = Simd<T>::lanes;
    static_assert(count % lanes == 0);
    UNROLL
    for (int k = 0; k < count; k += lanes) {
        fold<T, lanes / 2, lanes / 2>(x + k);
        store<T>(sums + k, load<T>(sums + k) + x[k]);
    }
}

}  // namespace l2o
