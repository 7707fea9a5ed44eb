// NEON (Armv8-A, with or without the dot-product instructions): the 16 lanes are four registers. Included by simd.h only.
#pragma once
#include <arm_neon.h>

namespace haversack::HAVERSACK_TARGET {

struct Floats {
    float32x4_t v[4];
};
struct Ints {
    int32x4_t v[4];
};
struct Mask {
    uint32x4_t v[4];
};

template <typename Result, typename Operation>
HAVERSACK_INLINE Result each(Operation operation) {
    Result r;
    for (int i = 0; i < 4; ++i) r.v[i] = operation(i);
    return r;
}

HAVERSACK_INLINE Floats load(const void *p) {
    const float *f = static_cast<const float *>(p);
    return {{vld1q_f32(f), vld1q_f32(f + 4), vld1q_f32(f + 8), vld1q_f32(f + 12)}};
}
HAVERSACK_INLINE Floats load_part(const void *p, long n) {
    float buffer[lanes] = {};
    std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(float));
    return load(buffer);
}
HAVERSACK_INLINE void store(void *p, Floats a) {
    float *f = static_cast<float *>(p);
    for (int i = 0; i < 4; ++i) vst1q_f32(f + 4 * i, a.v[i]);
}
HAVERSACK_INLINE void store_part(void *p, Floats a, long n) {
    float buffer[lanes];
    store(buffer, a);
    std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(float));
}
HAVERSACK_INLINE Floats set(float x) {
    return each<Floats>([=](int) { return vdupq_n_f32(x); });
}
HAVERSACK_INLINE Floats zero() { return set(0.0f); }
HAVERSACK_INLINE Floats operator+(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
HAVERSACK_INLINE Floats operator-(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
HAVERSACK_INLINE Floats operator*(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
HAVERSACK_INLINE Floats operator/(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
HAVERSACK_INLINE Floats fma(Floats a, Floats b, Floats c) {
    return each<Floats>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
// As on x86: the second where either is NaN.
HAVERSACK_INLINE Floats min(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
HAVERSACK_INLINE Floats max(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
HAVERSACK_INLINE Floats abs(Floats a) {
    return each<Floats>([&](int i) { return vabsq_f32(a.v[i]); });
}
HAVERSACK_INLINE Floats sqrt(Floats a) {
    return each<Floats>([&](int i) { return vsqrtq_f32(a.v[i]); });
}
HAVERSACK_INLINE Floats round(Floats a) {
    return each<Floats>([&](int i) { return vrndnq_f32(a.v[i]); });
}
HAVERSACK_INLINE float sum(Floats a) {
    const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
HAVERSACK_INLINE float32x4_t larger_four(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
HAVERSACK_INLINE float largest(Floats a) {
    const float32x4_t four = larger_four(larger_four(a.v[0], a.v[2]), larger_four(a.v[1], a.v[3]));
    const float32x4_t two = larger_four(four, vextq_f32(four, four, 2));
    return vgetq_lane_f32(larger_four(two, vextq_f32(two, two, 1)), 0);
}

HAVERSACK_INLINE Mask less(Floats a, Floats b) {
    return each<Mask>([&](int i) { return vcltq_f32(a.v[i], b.v[i]); });
}
HAVERSACK_INLINE Mask unordered(Floats a) {
    return each<Mask>([&](int i) { return vmvnq_u32(vceqq_f32(a.v[i], a.v[i])); });
}
HAVERSACK_INLINE Floats select(Mask m, Floats yes, Floats no) {
    return each<Floats>([&](int i) { return vbslq_f32(m.v[i], yes.v[i], no.v[i]); });
}
HAVERSACK_INLINE Floats add_where(Floats sum, uint32_t bits, Floats x) {
    static const uint32_t places[4] = {1, 2, 4, 8};
    const uint32x4_t all = vdupq_n_u32(bits), first = vld1q_u32(places);
    return each<Floats>([&](int i) {
        const uint32x4_t taken = vtstq_u32(all, vshlq_u32(first, vdupq_n_s32(4 * i)));
        return vaddq_f32(sum.v[i], vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x.v[i]), taken)));
    });
}

HAVERSACK_INLINE Ints load_ints(const void *p) {
    const int32_t *q = static_cast<const int32_t *>(p);
    return {{vld1q_s32(q), vld1q_s32(q + 4), vld1q_s32(q + 8), vld1q_s32(q + 12)}};
}
HAVERSACK_INLINE void store_ints(void *p, Ints a) {
    for (int i = 0; i < 4; ++i) vst1q_s32(static_cast<int32_t *>(p) + 4 * i, a.v[i]);
}
HAVERSACK_INLINE Ints set_ints(int32_t x) {
    return each<Ints>([=](int) { return vdupq_n_s32(x); });
}
HAVERSACK_INLINE Ints operator+(Ints a, Ints b) {
    return each<Ints>([&](int i) { return vaddq_s32(a.v[i], b.v[i]); });
}
HAVERSACK_INLINE Ints operator-(Ints a, Ints b) {
    return each<Ints>([&](int i) { return vsubq_s32(a.v[i], b.v[i]); });
}
HAVERSACK_INLINE Ints operator&(Ints a, Ints b) {
    return each<Ints>([&](int i) { return vandq_s32(a.v[i], b.v[i]); });
}
HAVERSACK_INLINE Ints operator|(Ints a, Ints b) {
    return each<Ints>([&](int i) { return vorrq_s32(a.v[i], b.v[i]); });
}
template <int N>
HAVERSACK_INLINE Ints shift_left(Ints a) {
    return {{vshlq_n_s32(a.v[0], N), vshlq_n_s32(a.v[1], N), vshlq_n_s32(a.v[2], N), vshlq_n_s32(a.v[3], N)}};
}
template <int N>
HAVERSACK_INLINE Ints shift_right(Ints a) {
    return {{vshrq_n_s32(a.v[0], N), vshrq_n_s32(a.v[1], N), vshrq_n_s32(a.v[2], N), vshrq_n_s32(a.v[3], N)}};
}
HAVERSACK_INLINE Ints to_ints(Floats a) {
    return each<Ints>([&](int i) { return vcvtnq_s32_f32(a.v[i]); });
}
HAVERSACK_INLINE Floats to_floats(Ints a) {
    return each<Floats>([&](int i) { return vcvtq_f32_s32(a.v[i]); });
}
HAVERSACK_INLINE Ints as_ints(Floats a) {
    return each<Ints>([&](int i) { return vreinterpretq_s32_f32(a.v[i]); });
}
HAVERSACK_INLINE Floats as_floats(Ints a) {
    return each<Floats>([&](int i) { return vreinterpretq_f32_s32(a.v[i]); });
}
HAVERSACK_INLINE Ints larger(Ints a, Ints b) {
    return each<Ints>([&](int i) { return vmaxq_s32(a.v[i], b.v[i]); });
}
HAVERSACK_INLINE int32_t largest(Ints a) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3]))); }

struct Halves {
    uint16x4_t v[4];
};
HAVERSACK_INLINE Halves load_halves(const void *p) {
    const uint16_t *q = static_cast<const uint16_t *>(p);
    return {{vld1_u16(q), vld1_u16(q + 4), vld1_u16(q + 8), vld1_u16(q + 12)}};
}
HAVERSACK_INLINE Halves load_halves_part(const void *p, long n) {
    uint16_t buffer[lanes] = {};
    std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(uint16_t));
    return load_halves(buffer);
}
HAVERSACK_INLINE void store_halves(void *p, Halves h) {
    for (int i = 0; i < 4; ++i) vst1_u16(static_cast<uint16_t *>(p) + 4 * i, h.v[i]);
}
HAVERSACK_INLINE void store_halves_part(void *p, Halves h, long n) {
    uint16_t buffer[lanes];
    store_halves(buffer, h);
    std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(uint16_t));
}
HAVERSACK_INLINE Floats from_f16(Halves h) {
    return each<Floats>([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(h.v[i])); });
}
HAVERSACK_INLINE Floats from_bf16(Halves h) {
    return each<Floats>([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(h.v[i], 16)); });
}
HAVERSACK_INLINE Floats load_f16(const void *p) { return from_f16(load_halves(p)); }
HAVERSACK_INLINE Floats load_f16_part(const void *p, long n) { return from_f16(load_halves_part(p, n)); }
HAVERSACK_INLINE Floats load_bf16(const void *p) { return from_bf16(load_halves(p)); }
HAVERSACK_INLINE Floats load_bf16_part(const void *p, long n) { return from_bf16(load_halves_part(p, n)); }
HAVERSACK_INLINE Halves to_f16(Floats a) {
    return each<Halves>([&](int i) { return vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])); });
}
// Round to nearest even; NaN becomes a quiet NaN.
HAVERSACK_INLINE Halves to_bf16(Floats a) {
    return each<Halves>([&](int i) {
        const uint32x4_t bits = vreinterpretq_u32_f32(a.v[i]);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
        return vshrn_n_u32(vbslq_u32(vceqq_f32(a.v[i], a.v[i]), rounded, quiet), 16);
    });
}
HAVERSACK_INLINE void store_f16(void *p, Floats a) { store_halves(p, to_f16(a)); }
HAVERSACK_INLINE void store_f16_part(void *p, Floats a, long n) { store_halves_part(p, to_f16(a), n); }
HAVERSACK_INLINE void store_bf16(void *p, Floats a) { store_halves(p, to_bf16(a)); }
HAVERSACK_INLINE void store_bf16_part(void *p, Floats a, long n) { store_halves_part(p, to_bf16(a), n); }

HAVERSACK_INLINE Floats load_i8(const void *p) {
    const int8x16_t bytes = vld1q_s8(static_cast<const int8_t *>(p));
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}
HAVERSACK_INLINE Floats load_i8_part(const void *p, long n) {
    int8_t buffer[lanes] = {};
    std::memcpy(buffer, p, static_cast<size_t>(n));
    return load_i8(buffer);
}
HAVERSACK_INLINE void store_i8(void *p, Floats a) {
    const Ints x = to_ints(a);
    const int16x8_t low = vcombine_s16(vqmovn_s32(x.v[0]), vqmovn_s32(x.v[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(x.v[2]), vqmovn_s32(x.v[3]));
    vst1q_s8(static_cast<int8_t *>(p), vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}
HAVERSACK_INLINE void store_i8_part(void *p, Floats a, long n) {
    int8_t buffer[lanes];
    store_i8(buffer, a);
    std::memcpy(p, buffer, static_cast<size_t>(n));
}

// 64 bytes: 16 rows times 4 inputs. Rows are the 32-bit lanes.
struct Quads {
    uint8x16_t v[4];
};
HAVERSACK_INLINE Quads load_quads(const void *p) {
    const uint8_t *q = static_cast<const uint8_t *>(p);
    return {{vld1q_u8(q), vld1q_u8(q + 16), vld1q_u8(q + 32), vld1q_u8(q + 48)}};
}
HAVERSACK_INLINE Quads low_nibbles(Quads w) {
    return each<Quads>([&](int i) { return vandq_u8(w.v[i], vdupq_n_u8(15)); });
}
HAVERSACK_INLINE Quads high_nibbles(Quads w) {
    return each<Quads>([&](int i) { return vshrq_n_u8(w.v[i], 4); });
}
// dot: acc + sum of 4 products of unsigned weights and the 4 signed inputs in x.
// dot_few: the same for weights up to 15, at most 8 times between begin_few and end_few.
#if defined(__ARM_FEATURE_DOTPROD)
using Few = Ints;
HAVERSACK_INLINE Few begin_few(Ints so_far) { return so_far; }
HAVERSACK_INLINE Few dot_few(Few acc, Quads w, int32_t x) {
    const int8x16_t inputs = vreinterpretq_s8_s32(vdupq_n_s32(x));
    return each<Ints>([&](int i) { return vdotq_s32(acc.v[i], vreinterpretq_s8_u8(w.v[i]), inputs); });
}
HAVERSACK_INLINE Ints end_few(Few acc, Ints) { return acc; }
// Unsigned weights: less 128 they are signed, and 128 times the inputs' sum is added.
HAVERSACK_INLINE Ints dot(Ints acc, Quads w, int32_t x) {
    const int8x16_t inputs = vreinterpretq_s8_s32(vdupq_n_s32(x)), flip = vdupq_n_s8(-128);
    const int32x4_t back = vdotq_s32(vdupq_n_s32(0), inputs, flip);
    return each<Ints>(
        [&](int i) { return vsubq_s32(vdotq_s32(acc.v[i], veorq_s8(vreinterpretq_s8_u8(w.v[i]), flip), inputs), back); });
}
#else
// Products stay apart in 16 bits (8 * 15 * 127 fits) until end_few adds the four of each row.
struct Few {
    int16x8_t low[4], high[4];
};
HAVERSACK_INLINE Few begin_few(Ints) {
    Few few;
    for (int i = 0; i < 4; ++i) few.low[i] = few.high[i] = vdupq_n_s16(0);
    return few;
}
HAVERSACK_INLINE Few dot_few(Few acc, Quads w, int32_t x) {
    const int8x16_t inputs = vreinterpretq_s8_s32(vdupq_n_s32(x));
    for (int i = 0; i < 4; ++i) {
        const int8x16_t bytes = vreinterpretq_s8_u8(w.v[i]);
        acc.low[i] = vmlal_s8(acc.low[i], vget_low_s8(bytes), vget_low_s8(inputs));
        acc.high[i] = vmlal_high_s8(acc.high[i], bytes, inputs);
    }
    return acc;
}
HAVERSACK_INLINE Ints end_few(Few acc, Ints so_far) {
    return each<Ints>(
        [&](int i) { return vaddq_s32(so_far.v[i], vpaddq_s32(vpaddlq_s16(acc.low[i]), vpaddlq_s16(acc.high[i]))); });
}
// Weights less 128, so that both sides are signed bytes; pairs of products fit 16 bits.
HAVERSACK_INLINE Ints dot(Ints acc, Quads w, int32_t x) {
    const int8x16_t inputs = vreinterpretq_s8_s32(vdupq_n_s32(x));
    const int32x4_t sums = vpaddlq_s16(vpaddlq_s8(inputs)), back = vshlq_n_s32(sums, 7);
    return each<Ints>([&](int i) {
        const int8x16_t bytes = veorq_s8(vreinterpretq_s8_u8(w.v[i]), vdupq_n_s8(-128));
        const int16x8_t low = vmull_s8(vget_low_s8(bytes), vget_low_s8(inputs)), high = vmull_high_s8(bytes, inputs);
        return vaddq_s32(vaddq_s32(acc.v[i], back), vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
    });
}
#endif
template <int I>
HAVERSACK_INLINE Floats byte_floats(Quads w) {
    return each<Floats>([&](int i) {
        const uint32x4_t shifted = vshlq_u32(vreinterpretq_u32_u8(w.v[i]), vdupq_n_s32(-8 * I));
        return vcvtq_f32_u32(vandq_u32(shifted, vdupq_n_u32(255)));
    });
}
// Nibble i (0..7; low nibbles of bytes 0..3, then high nibbles) less 8, as a float.
template <int I>
HAVERSACK_INLINE Floats nibble_floats(Quads w) {
    constexpr int shift = I < 4 ? 8 * I : 8 * (I - 4) + 4;
    return each<Floats>([&](int i) {
        const uint32x4_t shifted = vshlq_u32(vreinterpretq_u32_u8(w.v[i]), vdupq_n_s32(-shift));
        const int32x4_t nibble = vreinterpretq_s32_u32(vandq_u32(shifted, vdupq_n_u32(15)));
        return vcvtq_f32_s32(vsubq_s32(nibble, vdupq_n_s32(8)));
    });
}
// Three bits of every byte, from bit Shift (0 or 3) on.
template <int Shift>
HAVERSACK_INLINE Quads three_bits(Quads w) {
    return each<Quads>([&](int i) { return vandq_u8(vshlq_u8(w.v[i], vdupq_n_s8(-Shift)), vdupq_n_u8(7)); });
}
// Bits 6 and 7 of every byte of `two` as bits 0 and 1, bit Shift + 2 of `one` as bit 2.
template <int Shift>
HAVERSACK_INLINE Quads spread_bits(Quads two, Quads one) {
    return each<Quads>(
        [&](int i) { return vorrq_u8(vshrq_n_u8(two.v[i], 6), vandq_u8(vshrq_n_u8(one.v[i], Shift), vdupq_n_u8(4))); });
}
// Three bits of every row, from bit Shift on, less 4, as a float.
template <int Shift>
HAVERSACK_INLINE Floats three_bit_floats(Quads w) {
    return each<Floats>([&](int i) {
        const uint32x4_t shifted = vshlq_u32(vreinterpretq_u32_u8(w.v[i]), vdupq_n_s32(-Shift));
        const int32x4_t bits = vreinterpretq_s32_u32(vandq_u32(shifted, vdupq_n_u32(7)));
        return vcvtq_f32_s32(vsubq_s32(bits, vdupq_n_s32(4)));
    });
}
// Into the second-level cache.
HAVERSACK_INLINE void prefetch_far(const void *p) { __builtin_prefetch(p, 0, 2); }

}  // namespace haversack::HAVERSACK_TARGET
