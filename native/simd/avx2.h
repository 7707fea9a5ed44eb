// AVX2 with FMA and F16C: the 16 lanes are two registers, a (lanes 0..7) and b (lanes 8..15). Included by simd.h only.
#pragma once
#include <immintrin.h>

namespace haversack::HAVERSACK_TARGET {

struct Floats {
    __m256 a, b;
};
struct Ints {
    __m256i a, b;
};
struct Mask {
    __m256 a, b;
};

// All ones in the first n of 8 lanes.
HAVERSACK_INLINE __m256i first(long n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

HAVERSACK_INLINE Floats load(const void *p) {
    const float *f = static_cast<const float *>(p);
    return {_mm256_loadu_ps(f), _mm256_loadu_ps(f + 8)};
}
HAVERSACK_INLINE Floats load_part(const void *p, long n) {
    const float *f = static_cast<const float *>(p);
    return {_mm256_maskload_ps(f, first(n)), _mm256_maskload_ps(f + 8, first(n - 8))};
}
HAVERSACK_INLINE void store(void *p, Floats x) {
    float *f = static_cast<float *>(p);
    _mm256_storeu_ps(f, x.a);
    _mm256_storeu_ps(f + 8, x.b);
}
HAVERSACK_INLINE void store_part(void *p, Floats x, long n) {
    float *f = static_cast<float *>(p);
    _mm256_maskstore_ps(f, first(n), x.a);
    _mm256_maskstore_ps(f + 8, first(n - 8), x.b);
}
HAVERSACK_INLINE Floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
HAVERSACK_INLINE Floats set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
HAVERSACK_INLINE Floats operator+(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
HAVERSACK_INLINE Floats operator-(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
HAVERSACK_INLINE Floats operator*(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
HAVERSACK_INLINE Floats operator/(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
HAVERSACK_INLINE Floats fma(Floats x, Floats y, Floats z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
HAVERSACK_INLINE Floats min(Floats x, Floats y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
HAVERSACK_INLINE Floats max(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
HAVERSACK_INLINE Floats abs(Floats x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
HAVERSACK_INLINE Floats sqrt(Floats x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
HAVERSACK_INLINE Floats round(Floats x) {
    return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
HAVERSACK_INLINE float sum(Floats x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
HAVERSACK_INLINE float largest(Floats x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

HAVERSACK_INLINE Mask less(Floats x, Floats y) {
    return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
HAVERSACK_INLINE Mask unordered(Floats x) {
    return {_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)};
}
HAVERSACK_INLINE Floats select(Mask m, Floats yes, Floats no) {
    return {_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)};
}
HAVERSACK_INLINE Floats add_where(Floats sum, uint32_t bits, Floats x) {
    const __m256i low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), high = _mm256_slli_epi32(low, 8);
    const __m256i all = _mm256_set1_epi32(static_cast<int>(bits));
    const __m256 a = _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, low), low));
    const __m256 b = _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, high), high));
    return {_mm256_add_ps(sum.a, _mm256_and_ps(x.a, a)), _mm256_add_ps(sum.b, _mm256_and_ps(x.b, b))};
}

HAVERSACK_INLINE Ints load_ints(const void *p) {
    const __m256i *q = static_cast<const __m256i *>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
HAVERSACK_INLINE void store_ints(void *p, Ints x) {
    __m256i *q = static_cast<__m256i *>(p);
    _mm256_storeu_si256(q, x.a);
    _mm256_storeu_si256(q + 1, x.b);
}
HAVERSACK_INLINE Ints set_ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
HAVERSACK_INLINE Ints operator+(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
HAVERSACK_INLINE Ints operator-(Ints x, Ints y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
HAVERSACK_INLINE Ints operator&(Ints x, Ints y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
HAVERSACK_INLINE Ints operator|(Ints x, Ints y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
template <int N>
HAVERSACK_INLINE Ints shift_left(Ints x) {
    return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)};
}
template <int N>
HAVERSACK_INLINE Ints shift_right(Ints x) {
    return {_mm256_srai_epi32(x.a, N), _mm256_srai_epi32(x.b, N)};
}
HAVERSACK_INLINE Ints to_ints(Floats x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
HAVERSACK_INLINE Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
HAVERSACK_INLINE Ints as_ints(Floats x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
HAVERSACK_INLINE Floats as_floats(Ints x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
HAVERSACK_INLINE Ints larger(Ints x, Ints y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
HAVERSACK_INLINE int32_t largest(Ints x) {
    const __m256i eight = _mm256_max_epi32(x.a, x.b);
    const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

struct Halves {
    __m128i a, b;
};
HAVERSACK_INLINE Halves load_halves(const void *p) {
    const __m128i *q = static_cast<const __m128i *>(p);
    return {_mm_loadu_si128(q), _mm_loadu_si128(q + 1)};
}
HAVERSACK_INLINE Halves load_halves_part(const void *p, long n) {
    uint16_t buffer[lanes] = {};
    std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(uint16_t));
    return load_halves(buffer);
}
HAVERSACK_INLINE void store_halves(void *p, Halves h) {
    __m128i *q = static_cast<__m128i *>(p);
    _mm_storeu_si128(q, h.a);
    _mm_storeu_si128(q + 1, h.b);
}
HAVERSACK_INLINE void store_halves_part(void *p, Halves h, long n) {
    uint16_t buffer[lanes];
    store_halves(buffer, h);
    std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(uint16_t));
}
HAVERSACK_INLINE Floats from_f16(Halves h) { return {_mm256_cvtph_ps(h.a), _mm256_cvtph_ps(h.b)}; }
HAVERSACK_INLINE Floats from_bf16(Halves h) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h.a), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h.b), 16))};
}
HAVERSACK_INLINE Floats load_f16(const void *p) { return from_f16(load_halves(p)); }
HAVERSACK_INLINE Floats load_f16_part(const void *p, long n) { return from_f16(load_halves_part(p, n)); }
HAVERSACK_INLINE Floats load_bf16(const void *p) { return from_bf16(load_halves(p)); }
HAVERSACK_INLINE Floats load_bf16_part(const void *p, long n) { return from_bf16(load_halves_part(p, n)); }
HAVERSACK_INLINE Halves to_f16(Floats x) {
    return {_mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// Round to nearest even; NaN becomes a quiet NaN.
HAVERSACK_INLINE __m128i to_bf16_eight(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i kept = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
}
HAVERSACK_INLINE Halves to_bf16(Floats x) { return {to_bf16_eight(x.a), to_bf16_eight(x.b)}; }
HAVERSACK_INLINE void store_f16(void *p, Floats x) { store_halves(p, to_f16(x)); }
HAVERSACK_INLINE void store_f16_part(void *p, Floats x, long n) { store_halves_part(p, to_f16(x), n); }
HAVERSACK_INLINE void store_bf16(void *p, Floats x) { store_halves(p, to_bf16(x)); }
HAVERSACK_INLINE void store_bf16_part(void *p, Floats x, long n) { store_halves_part(p, to_bf16(x), n); }

HAVERSACK_INLINE Floats load_i8(const void *p) {
    const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i *>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
HAVERSACK_INLINE Floats load_i8_part(const void *p, long n) {
    int8_t buffer[lanes] = {};
    std::memcpy(buffer, p, static_cast<size_t>(n));
    return load_i8(buffer);
}
HAVERSACK_INLINE __m128i to_i8(Floats x) {
    const __m256i a = _mm256_cvtps_epi32(x.a), b = _mm256_cvtps_epi32(x.b);
    const __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    const __m128i high = _mm_packs_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
    return _mm_packs_epi16(low, high);
}
HAVERSACK_INLINE void store_i8(void *p, Floats x) { _mm_storeu_si128(static_cast<__m128i *>(p), to_i8(x)); }
HAVERSACK_INLINE void store_i8_part(void *p, Floats x, long n) {
    int8_t buffer[lanes];
    store_i8(buffer, x);
    std::memcpy(p, buffer, static_cast<size_t>(n));
}

// 64 bytes: 16 rows times 4 inputs. Rows are the 32-bit lanes.
struct Quads {
    __m256i a, b;
};
HAVERSACK_INLINE Quads load_quads(const void *p) {
    const __m256i *q = static_cast<const __m256i *>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
HAVERSACK_INLINE Quads low_nibbles(Quads w) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(w.a, mask), _mm256_and_si256(w.b, mask)};
}
HAVERSACK_INLINE Quads high_nibbles(Quads w) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(_mm256_srli_epi16(w.a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(w.b, 4), mask)};
}
// Unsigned weights up to 255: even and odd bytes apart as 16-bit numbers, since vpmaddubsw would saturate.
HAVERSACK_INLINE __m256i dot_eight(__m256i acc, __m256i w, __m256i even, __m256i odd) {
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)), even));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_srli_epi16(w, 8), odd));
}
HAVERSACK_INLINE Ints dot(Ints acc, Quads w, int32_t x) {
    const __m256i inputs = _mm256_set1_epi32(x);
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(inputs, 8), 8), odd = _mm256_srai_epi16(inputs, 8);
    return {dot_eight(acc.a, w.a, even, odd), dot_eight(acc.b, w.b, even, odd)};
}
// The same for weights up to 15, at most 8 times between begin_few and end_few: 8 * 2 * 15 * 127 fits 16 bits.
struct Few {
    __m256i a, b;
};
HAVERSACK_INLINE Few begin_few(Ints) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
HAVERSACK_INLINE Few dot_few(Few acc, Quads w, int32_t x) {
    const __m256i inputs = _mm256_set1_epi32(x);
    return {_mm256_add_epi16(acc.a, _mm256_maddubs_epi16(w.a, inputs)),
            _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(w.b, inputs))};
}
HAVERSACK_INLINE Ints end_few(Few acc, Ints so_far) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(so_far.a, _mm256_madd_epi16(acc.a, ones)),
            _mm256_add_epi32(so_far.b, _mm256_madd_epi16(acc.b, ones))};
}
template <int I>
HAVERSACK_INLINE Floats byte_floats(Quads w) {
    const __m256i mask = _mm256_set1_epi32(255);
    return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(w.a, 8 * I), mask)),
            _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(w.b, 8 * I), mask))};
}
// Nibble i (0..7; low nibbles of bytes 0..3, then high nibbles) less 8, as a float.
template <int I>
HAVERSACK_INLINE Floats nibble_floats(Quads w) {
    constexpr int shift = I < 4 ? 8 * I : 8 * (I - 4) + 4;
    const __m256i mask = _mm256_set1_epi32(15), eight = _mm256_set1_epi32(8);
    return {_mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_and_si256(_mm256_srli_epi32(w.a, shift), mask), eight)),
            _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_and_si256(_mm256_srli_epi32(w.b, shift), mask), eight))};
}
// Three bits of every byte, from bit Shift (0 or 3) on.
template <int Shift>
HAVERSACK_INLINE Quads three_bits(Quads w) {
    const __m256i mask = _mm256_set1_epi8(7);
    return {_mm256_and_si256(_mm256_srli_epi16(w.a, Shift), mask), _mm256_and_si256(_mm256_srli_epi16(w.b, Shift), mask)};
}
// Bits 6 and 7 of every byte of `two` as bits 0 and 1, bit Shift + 2 of `one` as bit 2.
template <int Shift>
HAVERSACK_INLINE __m256i spread_eight(__m256i two, __m256i one) {
    const __m256i low = _mm256_and_si256(_mm256_srli_epi16(two, 6), _mm256_set1_epi8(3));
    return _mm256_or_si256(low, _mm256_and_si256(_mm256_srli_epi16(one, Shift), _mm256_set1_epi8(4)));
}
template <int Shift>
HAVERSACK_INLINE Quads spread_bits(Quads two, Quads one) {
    return {spread_eight<Shift>(two.a, one.a), spread_eight<Shift>(two.b, one.b)};
}
// Three bits of every row, from bit Shift on, less 4, as a float.
template <int Shift>
HAVERSACK_INLINE Floats three_bit_floats(Quads w) {
    const __m256i mask = _mm256_set1_epi32(7), four = _mm256_set1_epi32(4);
    return {_mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_and_si256(_mm256_srli_epi32(w.a, Shift), mask), four)),
            _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_and_si256(_mm256_srli_epi32(w.b, Shift), mask), four))};
}
// Into the second-level cache.
HAVERSACK_INLINE void prefetch_far(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T1); }

}  // namespace haversack::HAVERSACK_TARGET
