// Numbers in fp32 or, with BF16, in bf16: what the kernels for a CPU have in common.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
constexpr int LANES = 16;  // numbers of a vector
#else
constexpr int LANES = 8;
#endif
// Before a function with long loops: gcc makes vectors of half the width of them unless told.
#if defined(__AVX512F__) && !defined(__clang__)
#define FULL_WIDTH __attribute__((target("prefer-vector-width=512")))
#else
#define FULL_WIDTH
#endif
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));

static inline float wide(float x) { return x; }
static inline Vector load(const float* x) { return *(const Vector*)x; }

#ifdef BF16  // the upper half of a float's bits
using Number = uint16_t;
static inline float wide(Number x) {
    uint32_t bits = uint32_t(x) << 16;
    float number;
    std::memcpy(&number, &bits, 4);
    return number;
}
typedef Number Halves __attribute__((vector_size(2 * LANES), aligned(2)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
static inline Vector load(const Number* x) {
    return (Vector)(__builtin_convertvector(*(const Halves*)x, Words) << 16);
}
static inline Number narrow(float x) {  // to the nearest, and to the even one of two
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    Number rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;  // NaN, whatever its other bits
}
#else
using Number = float;
static inline Number narrow(float x) { return x; }
#endif

// exp(x) to 2 units in the last place, by the polynomial of Cephes: a loop over it becomes one over
// vectors with every compiler, unlike over a library's function. 0 for x below -80.
static inline float exponential(float x) {
    float kept = x < -80 ? -80 : x > 80 ? 80 : x;
    float whole = std::floor(kept * 1.44269504f + 0.5f);  // e^x = 2^whole e^part
    float part = std::fma(whole, -0.69314718f, x);  // rounded once
    float y = 1.98756915e-4f;
    y = y * part + 1.39819995e-3f;
    y = y * part + 8.33345191e-3f;
    y = y * part + 4.16657959e-2f;
    y = y * part + 1.66666655e-1f;
    y = y * part + 5.00000012e-1f;
    y = (y * part + 1) * part + 1;
    int32_t bits = (int32_t(whole) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return x < -80 ? 0 : y * power;
}

// The largest of n numbers that are not NaN.
template <typename T>
static inline float largest_of(const T* x, int64_t n) {
    Vector lanes = Vector{} - 1e30f;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) lanes = load(x + i) > lanes ? load(x + i) : lanes;
    float largest = lanes[0];
    for (int l = 1; l < LANES; l++) largest = lanes[l] > largest ? lanes[l] : largest;
    for (; i < n; i++) largest = wide(x[i]) > largest ? wide(x[i]) : largest;
    return largest;
}
