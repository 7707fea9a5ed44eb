// AVX-512 (F, BW, VL, DQ, VNNI): one register holds the 16 lanes. Included by simd.h only.
#pragma once
#include <immintrin.h>

namespace haversack::HAVERSACK_TARGET {

struct Floats {
    __m512 v;
};
struct Ints {
    __m512i v;
};
struct Mask {
    __mmask16 v;
};

HAVERSACK_INLINE __mmask16 first(long n) { return static_cast<__mmask16>((1u << n) - 1u); }

HAVERSACK_INLINE Floats load(const void *p) { return {_mm512_loadu_ps(p)}; }
HAVERSACK_INLINE Floats load_part(const void *p, long n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
HAVERSACK_INLINE void store(void *p, Floats a) { _mm512_storeu_ps(p, a.v); }
HAVERSACK_INLINE void store_part(void *p, Floats a, long n) { _mm512_mask_storeu_ps(p, first(n), a.v); }
HAVERSACK_INLINE Floats zero() { return {_mm512_setzero_ps()}; }
HAVERSACK_INLINE Floats set(float x) { return {_mm512_set1_ps(x)}; }
HAVERSACK_INLINE Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
HAVERSACK_INLINE Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
HAVERSACK_INLINE Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
HAVERSACK_INLINE Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
HAVERSACK_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
HAVERSACK_INLINE Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
HAVERSACK_INLINE Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
HAVERSACK_INLINE Floats abs(Floats a) { return {_mm512_abs_ps(a.v)}; }
HAVERSACK_INLINE Floats sqrt(Floats a) { return {_mm512_sqrt_ps(a.v)}; }
HAVERSACK_INLINE Floats round(Floats a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
HAVERSACK_INLINE float sum(Floats a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
HAVERSACK_INLINE float largest(Floats a) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

HAVERSACK_INLINE Mask less(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
HAVERSACK_INLINE Mask unordered(Floats a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
HAVERSACK_INLINE Floats select(Mask m, Floats yes, Floats no) { return {_mm512_mask_blend_ps(m.v, no.v, yes.v)}; }
HAVERSACK_INLINE Floats add_where(Floats sum, uint32_t bits, Floats x) {
    return {_mm512_mask_add_ps(sum.v, static_cast<__mmask16>(bits), sum.v, x.v)};
}

HAVERSACK_INLINE Ints load_ints(const void *p) { return {_mm512_loadu_si512(p)}; }
HAVERSACK_INLINE void store_ints(void *p, Ints a) { _mm512_storeu_si512(p, a.v); }
HAVERSACK_INLINE Ints set_ints(int32_t x) { return {_mm512_set1_epi32(x)}; }
HAVERSACK_INLINE Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
HAVERSACK_INLINE Ints operator-(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
HAVERSACK_INLINE Ints operator&(Ints a, Ints b) { return {_mm512_and_si512(a.v, b.v)}; }
HAVERSACK_INLINE Ints operator|(Ints a, Ints b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int N>
HAVERSACK_INLINE Ints shift_left(Ints a) {
    return {_mm512_slli_epi32(a.v, N)};
}
template <int N>
HAVERSACK_INLINE Ints shift_right(Ints a) {
    return {_mm512_srai_epi32(a.v, N)};
}
HAVERSACK_INLINE Ints to_ints(Floats a) { return {_mm512_cvtps_epi32(a.v)}; }
HAVERSACK_INLINE Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
HAVERSACK_INLINE Ints as_ints(Floats a) { return {_mm512_castps_si512(a.v)}; }
HAVERSACK_INLINE Floats as_floats(Ints a) { return {_mm512_castsi512_ps(a.v)}; }
HAVERSACK_INLINE Ints larger(Ints a, Ints b) { return {_mm512_max_epi32(a.v, b.v)}; }
HAVERSACK_INLINE int32_t largest(Ints a) { return _mm512_reduce_max_epi32(a.v); }

HAVERSACK_INLINE __m256i load_16x16(const void *p, long n) { return _mm256_maskz_loadu_epi16(first(n), p); }
HAVERSACK_INLINE Floats load_f16(const void *p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i *>(p)))};
}
HAVERSACK_INLINE Floats load_f16_part(const void *p, long n) { return {_mm512_cvtph_ps(load_16x16(p, n))}; }
HAVERSACK_INLINE Floats from_bf16(__m256i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
HAVERSACK_INLINE Floats load_bf16(const void *p) { return from_bf16(_mm256_loadu_si256(static_cast<const __m256i *>(p))); }
HAVERSACK_INLINE Floats load_bf16_part(const void *p, long n) { return from_bf16(load_16x16(p, n)); }
HAVERSACK_INLINE __m256i to_f16(Floats a) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
HAVERSACK_INLINE void store_f16(void *p, Floats a) { _mm256_storeu_si256(static_cast<__m256i *>(p), to_f16(a)); }
HAVERSACK_INLINE void store_f16_part(void *p, Floats a, long n) { _mm256_mask_storeu_epi16(p, first(n), to_f16(a)); }
// Round to nearest even; NaN becomes a quiet NaN.
HAVERSACK_INLINE __m256i to_bf16(Floats a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i kept = _mm512_mask_blend_epi32(unordered(a).v, rounded, _mm512_or_si512(bits, _mm512_set1_epi32(0x400000)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}
HAVERSACK_INLINE void store_bf16(void *p, Floats a) { _mm256_storeu_si256(static_cast<__m256i *>(p), to_bf16(a)); }
HAVERSACK_INLINE void store_bf16_part(void *p, Floats a, long n) { _mm256_mask_storeu_epi16(p, first(n), to_bf16(a)); }

HAVERSACK_INLINE Floats load_i8(const void *p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i *>(p))))};
}
HAVERSACK_INLINE Floats load_i8_part(const void *p, long n) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p)))};
}
HAVERSACK_INLINE void store_i8(void *p, Floats a) {
    _mm_storeu_si128(static_cast<__m128i *>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
HAVERSACK_INLINE void store_i8_part(void *p, Floats a, long n) {
    _mm_mask_storeu_epi8(p, first(n), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

// 64 bytes: 16 rows times 4 inputs. Rows are the 32-bit lanes.
struct Quads {
    __m512i v;
};
HAVERSACK_INLINE Quads load_quads(const void *p) { return {_mm512_loadu_si512(p)}; }
HAVERSACK_INLINE Quads low_nibbles(Quads a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
HAVERSACK_INLINE Quads high_nibbles(Quads a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
// acc + sum of 4 products of unsigned weights and the 4 signed inputs in x.
HAVERSACK_INLINE Ints dot(Ints acc, Quads w, int32_t x) { return {_mm512_dpbusd_epi32(acc.v, w.v, _mm512_set1_epi32(x))}; }
// The same for weights up to 15, at most 8 times between begin_few and end_few.
using Few = Ints;
HAVERSACK_INLINE Few begin_few(Ints so_far) { return so_far; }
HAVERSACK_INLINE Few dot_few(Few acc, Quads w, int32_t x) { return dot(acc, w, x); }
HAVERSACK_INLINE Ints end_few(Few acc, Ints) { return acc; }
// Byte i of every row as a float: unsigned.
template <int I>
HAVERSACK_INLINE Floats byte_floats(Quads w) {
    return {_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(w.v, 8 * I), _mm512_set1_epi32(255)))};
}
// Nibble i (0..7; low nibbles of bytes 0..3, then high nibbles) less 8, as a float.
template <int I>
HAVERSACK_INLINE Floats nibble_floats(Quads w) {
    const __m512 table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return {_mm512_permutexvar_ps(_mm512_srli_epi32(w.v, I < 4 ? 8 * I : 8 * (I - 4) + 4), table)};
}
// Three bits of every byte, from bit Shift (0 or 3) on.
template <int Shift>
HAVERSACK_INLINE Quads three_bits(Quads a) {
    return {_mm512_and_si512(_mm512_srli_epi16(a.v, Shift), _mm512_set1_epi8(7))};
}
// Bits 6 and 7 of every byte of `two` as bits 0 and 1, bit Shift + 2 of `one` as bit 2.
template <int Shift>
HAVERSACK_INLINE Quads spread_bits(Quads two, Quads one) {
    const __m512i low = _mm512_srli_epi16(two.v, 6), high = _mm512_srli_epi16(one.v, Shift);
    const __m512i either = _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(4), 0xd8);  // high where the mask is set
    return {_mm512_and_si512(either, _mm512_set1_epi8(7))};
}
// Three bits of every row, from bit Shift on, less 4, as a float.
template <int Shift>
HAVERSACK_INLINE Floats three_bit_floats(Quads w) {
    const __m512 table = _mm512_setr_ps(-4, -3, -2, -1, 0, 1, 2, 3, -4, -3, -2, -1, 0, 1, 2, 3);
    return {_mm512_permutexvar_ps(_mm512_srli_epi32(w.v, Shift), table)};
}
// Into the second-level cache.
HAVERSACK_INLINE void prefetch_far(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T1); }

}  // namespace haversack::HAVERSACK_TARGET
