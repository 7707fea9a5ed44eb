// One vector type for all instruction sets: 16 floats (Floats) and 16 32-bit integers (Ints), whatever the registers are.
//
// HOW TO WRITE A KERNEL FAMILY
//
//   native/norms.h        the table: a struct of function pointers, plain C types only, and HAVERSACK_FAMILY
//       #pragma once
//       #include "base/isa.h"
//       namespace haversack {
//       struct NormKernels { void (*rms_norm)(const float *x, const float *weight, float *out, long rows, long width, ...); };
//       }
//       HAVERSACK_FAMILY(NormKernels, norms)          // gives haversack::norms(), the table of the active instruction set
//
//   native/norms.cpp      the kernels; CMake compiles this file once per instruction set (a new file is found by itself)
//       #include "norms.h"
//       #include "base/pool.h"
//       #include "simd/simd.h"
//       namespace haversack::HAVERSACK_TARGET {
//       namespace {
//       void rms_norm(...) { parallel(rows, grain, [&](int64_t begin, int64_t end) { for (...) {...} }); }
//       }
//       HAVERSACK_TABLE(NormKernels, norms) = {rms_norm, ...};
//       }
//
//   native/bind/norms.cpp the Python side: HAVERSACK_BIND(norms) { module.def("rms_norm", ...); }; checks shapes, releases
//                         the GIL, calls norms().rms_norm(...). Compiled once.
//   native/tests/test_norms.cpp   HAVERSACK_TEST(name) { ... CHECK(...) } (tests/check.h), without Python.
//
// RULES inside native/*.cpp (they are compiled with flags that an older processor cannot run):
//   - everything sits in haversack::HAVERSACK_TARGET, in an unnamed namespace; no std:: containers, algorithms, functions
//     or other inline library templates (the linker could keep the AVX-512 copy for everybody). <cstdint>, <cstring>,
//     <cmath>'s plain functions and __builtin_* are fine; scratch memory comes from base/scratch.h.
//   - no nanobind.
//   - loads and stores are unaligned: weights are read straight from mapped files.
//   - ROW-INVARIANCE: the bits of one output never depend on how many rows the call has, on threads or on tiles. Threads
//     split rows, never a sum. A sum over k uses one 16-lane accumulator in the order of k, its tail through load_part
//     (zeros), and sum() at the end. Several rows at a time give the parallelism that one chain lacks.
//   - a * b + c is two roundings; fma(a, b, c) is one. Contraction is off for every file, so what is written is what runs.
//     avx2, avx512, neon and dotprod therefore give the same bits as each other (portable has no fused operation and differs).
//
// VOCABULARY (all static, in the instruction set's namespace)
//   Floats: load(p) load_part(p, n) store(p, v) store_part(p, v, n) zero() set(x) + - * / fma min max abs sqrt
//           round (to nearest even)  sum(v) (fixed tree: lanes i+8, i+4, i+2, i+1)  largest(v)  exp(v)
//   f16, bf16 (const uint16_t *, any alignment): load_f16 load_f16_part load_bf16 load_bf16_part store_f16 store_bf16 (+ _part)
//   int8: load_i8 (16 signed bytes -> Floats) load_i8_part store_i8 (Floats rounded to nearest, within -128..127) store_i8_part
//   Ints: load_ints(p) set_ints(x) + - & | ; shift_left<N> shift_right<N> (arithmetic) ; to_ints(Floats) (nearest even)
//         to_floats(Ints)  as_ints as_floats (same bits)  larger(Ints, Ints)  largest(Ints)
//   Masks:  less(a, b) -> Mask ; select(mask, yes, no)   (less is false where either is NaN)
//           add_where(sum, bits, x): sum + x in the lanes whose bit of 16 is set
//   min(a, b), max(a, b) return b where either is NaN (as x86 does; the other sets are made to agree).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__clang__) || defined(__GNUC__)
#define HAVERSACK_INLINE static inline __attribute__((always_inline))
#else
#define HAVERSACK_INLINE static inline
#endif

#define HAVERSACK_TABLE(Table, name)                                                                                           \
    extern const Table name##_table;                                                                                           \
    const Table name##_table

namespace haversack::HAVERSACK_TARGET {
constexpr int lanes = 16;
template <typename T>
HAVERSACK_INLINE T smaller_of(T a, T b) {
    return b < a ? b : a;
}
template <typename T>
HAVERSACK_INLINE T larger_of(T a, T b) {
    return a < b ? b : a;
}
}  // namespace haversack::HAVERSACK_TARGET

#if defined(HAVERSACK_PORTABLE)
#include "simd/portable.h"
#elif defined(__AVX512F__)
#include "simd/avx512.h"
#elif defined(__AVX2__)
#include "simd/avx2.h"
#elif defined(__ARM_NEON)
#include "simd/neon.h"
#endif

namespace haversack::HAVERSACK_TARGET {

// e^r for |r| <= ln 2 / 2.
HAVERSACK_INLINE Floats exp_part(Floats r) {
    Floats p = set(1.9875691500e-4f);
    p = fma(p, r, set(1.3981999507e-3f));
    p = fma(p, r, set(8.3334519073e-3f));
    p = fma(p, r, set(4.1665795894e-2f));
    p = fma(p, r, set(1.6666665459e-1f));
    p = fma(p, r, set(5.0000001201e-1f));
    return fma(p, r * r, r) + set(1.0f);
}

// e^v, relative error below 2e-7; 0 below -87.3, infinity above 88.7, NaN stays NaN.
// v = k ln 2 + r with |r| <= ln 2 / 2, a Taylor-like polynomial for e^r, then k is added to the exponent in two halves.
HAVERSACK_INLINE Floats exp(Floats v) {
    const Floats clipped = max(set(-104.0f), min(set(89.0f), v));
    const Floats k = round(clipped * set(1.44269504088896341f));
    Floats r = fma(k, set(-0.693359375f), clipped);
    r = fma(k, set(2.12194440e-4f), r);
    const Floats p = exp_part(r);
    const Ints whole = to_ints(k);
    const Ints half = shift_right<1>(whole);
    const Floats first = as_floats(shift_left<23>(half + set_ints(127)));
    const Floats second = as_floats(shift_left<23>(whole - half + set_ints(127)));
    const Floats result = p * first * second;
    const Floats finite = select(less(v, set(-87.3f)), zero(), select(less(set(88.72f), v), set(__builtin_inff()), result));
    return select(unordered(v), v, finite);
}

// exp(v) for v <= 0, with the bits of exp: a softmax needs no more.
HAVERSACK_INLINE Floats exp_below(Floats v) {
    const Floats clipped = max(set(-87.3f), v);
    const Floats k = round(clipped * set(1.44269504088896341f));
    Floats r = fma(k, set(-0.693359375f), clipped);
    r = fma(k, set(2.12194440e-4f), r);
    const Floats p = exp_part(r);
    return select(less(v, set(-87.3f)), zero(), p * as_floats(shift_left<23>(to_ints(k) + set_ints(127))));
}

}  // namespace haversack::HAVERSACK_TARGET
