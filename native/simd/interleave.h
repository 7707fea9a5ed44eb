// Four channels of packed weights, each 64 bytes side by side, turned into quads: lane 4 L + i of out[r] holds byte
// 16 L + 4 r + i of the four.
#pragma once
#include "simd/simd.h"

namespace haversack::HAVERSACK_TARGET {

#if defined(HAVERSACK_PORTABLE)
HAVERSACK_INLINE void interleave_quads(const Quads (&in)[4], Quads (&out)[4]) {
    for (int r = 0; r < 4; ++r)
        for (int lane = 0; lane < lanes; ++lane)
            for (int channel = 0; channel < 4; ++channel)
                out[r].v[4 * lane + channel] = in[channel].v[lane / 4 * 16 + 4 * r + lane % 4];
}
#elif defined(__AVX512F__)
HAVERSACK_INLINE void interleave_quads(const Quads (&in)[4], Quads (&out)[4]) {
    const __m512i one = _mm512_unpacklo_epi8(in[0].v, in[1].v), two = _mm512_unpackhi_epi8(in[0].v, in[1].v);
    const __m512i three = _mm512_unpacklo_epi8(in[2].v, in[3].v), four = _mm512_unpackhi_epi8(in[2].v, in[3].v);
    out[0].v = _mm512_unpacklo_epi16(one, three);
    out[1].v = _mm512_unpackhi_epi16(one, three);
    out[2].v = _mm512_unpacklo_epi16(two, four);
    out[3].v = _mm512_unpackhi_epi16(two, four);
}
#elif defined(__AVX2__)
HAVERSACK_INLINE void interleave_half(__m256i a, __m256i b, __m256i c, __m256i d, __m256i (&out)[4]) {
    const __m256i one = _mm256_unpacklo_epi8(a, b), two = _mm256_unpackhi_epi8(a, b);
    const __m256i three = _mm256_unpacklo_epi8(c, d), four = _mm256_unpackhi_epi8(c, d);
    out[0] = _mm256_unpacklo_epi16(one, three);
    out[1] = _mm256_unpackhi_epi16(one, three);
    out[2] = _mm256_unpacklo_epi16(two, four);
    out[3] = _mm256_unpackhi_epi16(two, four);
}
HAVERSACK_INLINE void interleave_quads(const Quads (&in)[4], Quads (&out)[4]) {
    __m256i low[4], high[4];
    interleave_half(in[0].a, in[1].a, in[2].a, in[3].a, low);
    interleave_half(in[0].b, in[1].b, in[2].b, in[3].b, high);
    for (int r = 0; r < 4; ++r) out[r] = {low[r], high[r]};
}
#elif defined(__ARM_NEON)
HAVERSACK_INLINE void interleave_quads(const Quads (&in)[4], Quads (&out)[4]) {
    for (int i = 0; i < 4; ++i) {
        const uint16x8_t one = vreinterpretq_u16_u8(vzip1q_u8(in[0].v[i], in[1].v[i]));
        const uint16x8_t two = vreinterpretq_u16_u8(vzip2q_u8(in[0].v[i], in[1].v[i]));
        const uint16x8_t three = vreinterpretq_u16_u8(vzip1q_u8(in[2].v[i], in[3].v[i]));
        const uint16x8_t four = vreinterpretq_u16_u8(vzip2q_u8(in[2].v[i], in[3].v[i]));
        out[0].v[i] = vreinterpretq_u8_u16(vzip1q_u16(one, three));
        out[1].v[i] = vreinterpretq_u8_u16(vzip2q_u16(one, three));
        out[2].v[i] = vreinterpretq_u8_u16(vzip1q_u16(two, four));
        out[3].v[i] = vreinterpretq_u8_u16(vzip2q_u16(two, four));
    }
}
#endif

}  // namespace haversack::HAVERSACK_TARGET
