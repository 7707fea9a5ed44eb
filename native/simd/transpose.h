// 16 vectors of 16 lanes, transposed: lane j of vector i becomes lane i of vector j.
#pragma once
#include "simd/simd.h"

namespace haversack::HAVERSACK_TARGET {

#if defined(HAVERSACK_PORTABLE)

HAVERSACK_INLINE void transpose(Floats rows[16]) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < i; ++j) {
            const float kept = rows[i].v[j];
            rows[i].v[j] = rows[j].v[i];
            rows[j].v[i] = kept;
        }
}

#elif defined(__AVX512F__)

HAVERSACK_INLINE void transpose(Floats rows[16]) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
        a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
    }
    for (int i = 0; i < 16; i += 4)
        for (int k = 0; k < 2; ++k) {
            const __m512d low = _mm512_castps_pd(a[i + k]), high = _mm512_castps_pd(a[i + k + 2]);
            b[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            b[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    // b[4 g + k] holds, in 128-bit part p, column 4 p + k of rows 4 g .. 4 g + 3.
    for (int k = 0; k < 4; ++k) {
        const __m512 even = _mm512_shuffle_f32x4(b[k], b[4 + k], 0x88), odd = _mm512_shuffle_f32x4(b[k], b[4 + k], 0xdd);
        const __m512 even2 = _mm512_shuffle_f32x4(b[8 + k], b[12 + k], 0x88);
        const __m512 odd2 = _mm512_shuffle_f32x4(b[8 + k], b[12 + k], 0xdd);
        rows[k].v = _mm512_shuffle_f32x4(even, even2, 0x88);
        rows[8 + k].v = _mm512_shuffle_f32x4(even, even2, 0xdd);
        rows[4 + k].v = _mm512_shuffle_f32x4(odd, odd2, 0x88);
        rows[12 + k].v = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
    }
}

#elif defined(__AVX2__)

HAVERSACK_INLINE void transpose_eight(__m256 r[8]) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; ++k) {
            const __m256d low = _mm256_castps_pd(a[i + k]), high = _mm256_castps_pd(a[i + k + 2]);
            b[i + 2 * k] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, high));
            b[i + 2 * k + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, high));
        }
    for (int k = 0; k < 4; ++k) {
        r[k] = _mm256_permute2f128_ps(b[k], b[4 + k], 0x20);
        r[4 + k] = _mm256_permute2f128_ps(b[k], b[4 + k], 0x31);
    }
}

HAVERSACK_INLINE void transpose(Floats rows[16]) {
    for (int half = 0; half < 2; ++half) {  // lanes 0..7 of the result come from rows 0..7
        __m256 left[8], right[8];
        for (int i = 0; i < 8; ++i) {
            left[i] = half ? rows[i].b : rows[i].a;
            right[i] = half ? rows[8 + i].b : rows[8 + i].a;
        }
        transpose_eight(left);
        transpose_eight(right);
        if (half == 0) {
            for (int i = 0; i < 8; ++i) {
                rows[i].a = left[i];  // rows[i].b is still needed
                rows[8 + i].a = right[i];
            }
        } else {
            __m256 kept[8];
            for (int i = 0; i < 8; ++i) {
                kept[i] = rows[8 + i].a;
                rows[8 + i] = {left[i], right[i]};
            }
            for (int i = 0; i < 8; ++i) rows[i].b = kept[i];
        }
    }
}

#elif defined(__ARM_NEON)

HAVERSACK_INLINE void transpose_four(float32x4_t r[4]) {
    const float32x4_t a = vtrn1q_f32(r[0], r[1]), b = vtrn2q_f32(r[0], r[1]);
    const float32x4_t c = vtrn1q_f32(r[2], r[3]), d = vtrn2q_f32(r[2], r[3]);
    const auto low = [](float32x4_t x, float32x4_t y) {
        return vreinterpretq_f32_f64(vtrn1q_f64(vreinterpretq_f64_f32(x), vreinterpretq_f64_f32(y)));
    };
    const auto high = [](float32x4_t x, float32x4_t y) {
        return vreinterpretq_f32_f64(vtrn2q_f64(vreinterpretq_f64_f32(x), vreinterpretq_f64_f32(y)));
    };
    r[0] = low(a, c);
    r[1] = low(b, d);
    r[2] = high(a, c);
    r[3] = high(b, d);
}

HAVERSACK_INLINE void transpose(Floats rows[16]) {
    float32x4_t parts[4][4][4];  // row group, column group, row of the group
    for (int i = 0; i < 16; ++i)
        for (int c = 0; c < 4; ++c) parts[i / 4][c][i % 4] = rows[i].v[c];
    for (int g = 0; g < 4; ++g)
        for (int c = 0; c < 4; ++c) transpose_four(parts[g][c]);
    for (int i = 0; i < 16; ++i)
        for (int g = 0; g < 4; ++g) rows[i].v[g] = parts[g][i / 4][i % 4];
}

#endif

}  // namespace haversack::HAVERSACK_TARGET
