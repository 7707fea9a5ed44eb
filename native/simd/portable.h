// Plain C++, for processors without AVX2 or NEON and as the reference for the others. Included by simd.h only.
#pragma once
#include <cmath>

namespace haversack::HAVERSACK_TARGET {

struct Floats {
    float v[lanes];
};
struct Ints {
    int32_t v[lanes];
};
struct Mask {
    bool v[lanes];
};

template <typename Result, typename Operation>
HAVERSACK_INLINE Result each(Operation operation) {
    Result r;
    for (int i = 0; i < lanes; ++i) r.v[i] = operation(i);
    return r;
}

HAVERSACK_INLINE Floats load(const void *p) {
    Floats r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
HAVERSACK_INLINE Floats load_part(const void *p, long n) {
    Floats r = {};
    std::memcpy(r.v, p, static_cast<size_t>(n) * sizeof(float));
    return r;
}
HAVERSACK_INLINE void store(void *p, Floats a) { std::memcpy(p, a.v, sizeof a.v); }
HAVERSACK_INLINE void store_part(void *p, Floats a, long n) { std::memcpy(p, a.v, static_cast<size_t>(n) * sizeof(float)); }
HAVERSACK_INLINE Floats zero() { return {}; }
HAVERSACK_INLINE Floats set(float x) {
    return each<Floats>([=](int) { return x; });
}
HAVERSACK_INLINE Floats operator+(Floats a, Floats b) {
    return each<Floats>([&](int i) { return a.v[i] + b.v[i]; });
}
HAVERSACK_INLINE Floats operator-(Floats a, Floats b) {
    return each<Floats>([&](int i) { return a.v[i] - b.v[i]; });
}
HAVERSACK_INLINE Floats operator*(Floats a, Floats b) {
    return each<Floats>([&](int i) { return a.v[i] * b.v[i]; });
}
HAVERSACK_INLINE Floats operator/(Floats a, Floats b) {
    return each<Floats>([&](int i) { return a.v[i] / b.v[i]; });
}
// Two roundings: without hardware support a fused operation would cost fifty times as much.
HAVERSACK_INLINE Floats fma(Floats a, Floats b, Floats c) {
    return each<Floats>([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
HAVERSACK_INLINE Floats min(Floats a, Floats b) {
    return each<Floats>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
HAVERSACK_INLINE Floats max(Floats a, Floats b) {
    return each<Floats>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
HAVERSACK_INLINE Floats abs(Floats a) {
    return each<Floats>([&](int i) { return __builtin_fabsf(a.v[i]); });
}
HAVERSACK_INLINE Floats sqrt(Floats a) {
    return each<Floats>([&](int i) { return __builtin_sqrtf(a.v[i]); });
}
HAVERSACK_INLINE Floats round(Floats a) {
    return each<Floats>([&](int i) { return __builtin_nearbyintf(a.v[i]); });
}
HAVERSACK_INLINE float sum(Floats a) {
    for (int step = lanes / 2; step > 0; step /= 2)
        for (int i = 0; i < step; ++i) a.v[i] += a.v[i + step];
    return a.v[0];
}
HAVERSACK_INLINE float largest(Floats a) {
    for (int step = lanes / 2; step > 0; step /= 2)
        for (int i = 0; i < step; ++i) a.v[i] = a.v[i] > a.v[i + step] ? a.v[i] : a.v[i + step];
    return a.v[0];
}

HAVERSACK_INLINE Mask less(Floats a, Floats b) {
    return each<Mask>([&](int i) { return a.v[i] < b.v[i]; });
}
HAVERSACK_INLINE Mask unordered(Floats a) {
    return each<Mask>([&](int i) { return a.v[i] != a.v[i]; });
}
HAVERSACK_INLINE Floats select(Mask m, Floats yes, Floats no) {
    return each<Floats>([&](int i) { return m.v[i] ? yes.v[i] : no.v[i]; });
}
HAVERSACK_INLINE Floats add_where(Floats sum, uint32_t bits, Floats x) {
    return each<Floats>([&](int i) { return sum.v[i] + (bits >> i & 1 ? x.v[i] : 0.0f); });
}

HAVERSACK_INLINE Ints load_ints(const void *p) {
    Ints r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
HAVERSACK_INLINE void store_ints(void *p, Ints a) { std::memcpy(p, a.v, sizeof a.v); }
HAVERSACK_INLINE Ints set_ints(int32_t x) {
    return each<Ints>([=](int) { return x; });
}
HAVERSACK_INLINE Ints operator+(Ints a, Ints b) {
    return each<Ints>([&](int i) { return a.v[i] + b.v[i]; });
}
HAVERSACK_INLINE Ints operator-(Ints a, Ints b) {
    return each<Ints>([&](int i) { return a.v[i] - b.v[i]; });
}
HAVERSACK_INLINE Ints operator&(Ints a, Ints b) {
    return each<Ints>([&](int i) { return a.v[i] & b.v[i]; });
}
HAVERSACK_INLINE Ints operator|(Ints a, Ints b) {
    return each<Ints>([&](int i) { return a.v[i] | b.v[i]; });
}
template <int N>
HAVERSACK_INLINE Ints shift_left(Ints a) {
    return each<Ints>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << N); });
}
template <int N>
HAVERSACK_INLINE Ints shift_right(Ints a) {
    return each<Ints>([&](int i) { return a.v[i] >> N; });
}
// Out of range and NaN give the smallest integer, as x86 does.
HAVERSACK_INLINE int32_t to_int(float x) {
    const float r = __builtin_nearbyintf(x);
    return r >= -2147483648.0f && r < 2147483648.0f ? static_cast<int32_t>(r) : INT32_MIN;
}
HAVERSACK_INLINE Ints to_ints(Floats a) {
    return each<Ints>([&](int i) { return to_int(a.v[i]); });
}
HAVERSACK_INLINE Floats to_floats(Ints a) {
    return each<Floats>([&](int i) { return static_cast<float>(a.v[i]); });
}
HAVERSACK_INLINE Ints as_ints(Floats a) {
    Ints r;
    std::memcpy(r.v, a.v, sizeof r.v);
    return r;
}
HAVERSACK_INLINE Floats as_floats(Ints a) {
    Floats r;
    std::memcpy(r.v, a.v, sizeof r.v);
    return r;
}
HAVERSACK_INLINE Ints larger(Ints a, Ints b) {
    return each<Ints>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
HAVERSACK_INLINE int32_t largest(Ints a) {
    int32_t found = a.v[0];
    for (int i = 1; i < lanes; ++i) found = a.v[i] > found ? a.v[i] : found;
    return found;
}

HAVERSACK_INLINE float float_of(uint32_t bits) {
    float r;
    std::memcpy(&r, &bits, sizeof r);
    return r;
}
HAVERSACK_INLINE uint32_t bits_of(float x) {
    uint32_t r;
    std::memcpy(&r, &x, sizeof r);
    return r;
}
HAVERSACK_INLINE float from_f16(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, rest = static_cast<uint32_t>(h & 0x7fff) << 13;
    if ((h & 0x7c00) == 0x7c00) return float_of(sign | 0x7f800000 | rest | ((h & 0x3ff) ? 0x400000 : 0));
    // Numbers, subnormal ones too: move the exponent by a multiplication that is exact.
    return float_of(sign | bits_of(float_of(rest) * float_of(0x77800000)));
}
HAVERSACK_INLINE uint16_t to_f16(float x) {
    const uint32_t bits = bits_of(x), sign = (bits >> 16) & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00 | ((size >> 13) & 0x1ff));
    if (size >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
    if (size < 0x38800000) {  // subnormal: adding one half of the smallest step's scale rounds to nearest even
        const float shifted = float_of(size) + 0.5f;
        return static_cast<uint16_t>(sign | (bits_of(shifted) - bits_of(0.5f)));
    }
    const uint32_t rounded = size + 0xfff + ((size >> 13) & 1);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}
HAVERSACK_INLINE float from_bf16(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }
HAVERSACK_INLINE uint16_t to_bf16(float x) {
    const uint32_t bits = bits_of(x);
    if (x != x) return static_cast<uint16_t>((bits | 0x400000) >> 16);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
struct Halves {
    uint16_t v[lanes];
};
HAVERSACK_INLINE Halves load_halves(const void *p, long n) {
    Halves r = {};
    std::memcpy(r.v, p, static_cast<size_t>(n) * sizeof(uint16_t));
    return r;
}
HAVERSACK_INLINE void store_halves(void *p, Halves h, long n) {
    std::memcpy(p, h.v, static_cast<size_t>(n) * sizeof(uint16_t));
}
HAVERSACK_INLINE Floats load_f16_part(const void *p, long n) {
    const Halves h = load_halves(p, n);
    return each<Floats>([&](int i) { return from_f16(h.v[i]); });
}
HAVERSACK_INLINE Floats load_f16(const void *p) { return load_f16_part(p, lanes); }
HAVERSACK_INLINE Floats load_bf16_part(const void *p, long n) {
    const Halves h = load_halves(p, n);
    return each<Floats>([&](int i) { return from_bf16(h.v[i]); });
}
HAVERSACK_INLINE Floats load_bf16(const void *p) { return load_bf16_part(p, lanes); }
HAVERSACK_INLINE void store_f16_part(void *p, Floats a, long n) {
    store_halves(p, each<Halves>([&](int i) { return to_f16(a.v[i]); }), n);
}
HAVERSACK_INLINE void store_f16(void *p, Floats a) { store_f16_part(p, a, lanes); }
HAVERSACK_INLINE void store_bf16_part(void *p, Floats a, long n) {
    store_halves(p, each<Halves>([&](int i) { return to_bf16(a.v[i]); }), n);
}
HAVERSACK_INLINE void store_bf16(void *p, Floats a) { store_bf16_part(p, a, lanes); }

HAVERSACK_INLINE Floats load_i8_part(const void *p, long n) {
    Floats r = {};
    for (long i = 0; i < n; ++i) r.v[i] = static_cast<const int8_t *>(p)[i];
    return r;
}
HAVERSACK_INLINE Floats load_i8(const void *p) { return load_i8_part(p, lanes); }
HAVERSACK_INLINE void store_i8_part(void *p, Floats a, long n) {
    for (long i = 0; i < n; ++i) {
        const int32_t x = to_int(a.v[i]);
        static_cast<int8_t *>(p)[i] = static_cast<int8_t>(x < -128 ? -128 : x > 127 ? 127 : x);
    }
}
HAVERSACK_INLINE void store_i8(void *p, Floats a) { store_i8_part(p, a, lanes); }

// 64 bytes: 16 rows times 4 inputs. Rows are the 32-bit lanes.
struct Quads {
    uint8_t v[4 * lanes];
};
HAVERSACK_INLINE Quads load_quads(const void *p) {
    Quads r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
HAVERSACK_INLINE Quads low_nibbles(Quads a) {
    for (uint8_t &b : a.v) b &= 15;
    return a;
}
HAVERSACK_INLINE Quads high_nibbles(Quads a) {
    for (uint8_t &b : a.v) b >>= 4;
    return a;
}
// acc + sum of 4 products of unsigned weights and the 4 signed inputs in x.
HAVERSACK_INLINE Ints dot(Ints acc, Quads w, int32_t x) {
    int8_t inputs[4];
    std::memcpy(inputs, &x, 4);
    for (int i = 0; i < lanes; ++i)
        for (int k = 0; k < 4; ++k) acc.v[i] += static_cast<int32_t>(w.v[4 * i + k]) * inputs[k];
    return acc;
}
// The same for weights up to 15, at most 8 times between begin_few and end_few.
using Few = Ints;
HAVERSACK_INLINE Few begin_few(Ints so_far) { return so_far; }
HAVERSACK_INLINE Few dot_few(Few acc, Quads w, int32_t x) { return dot(acc, w, x); }
HAVERSACK_INLINE Ints end_few(Few acc, Ints) { return acc; }
template <int I>
HAVERSACK_INLINE Floats byte_floats(Quads w) {
    return each<Floats>([&](int i) { return static_cast<float>(w.v[4 * i + I]); });
}
template <int I>
HAVERSACK_INLINE Floats nibble_floats(Quads w) {
    return each<Floats>([&](int i) {
        const int byte = w.v[4 * i + I % 4];
        return static_cast<float>((I < 4 ? byte & 15 : byte >> 4) - 8);
    });
}
// Three bits of every byte, from bit Shift (0 or 3) on.
template <int Shift>
HAVERSACK_INLINE Quads three_bits(Quads a) {
    for (uint8_t &b : a.v) b = b >> Shift & 7;
    return a;
}
// Bits 6 and 7 of every byte of `two` as bits 0 and 1, bit Shift + 2 of `one` as bit 2.
template <int Shift>
HAVERSACK_INLINE Quads spread_bits(Quads two, Quads one) {
    for (int i = 0; i < 4 * lanes; ++i) two.v[i] = static_cast<uint8_t>(two.v[i] >> 6 | (one.v[i] >> Shift & 4));
    return two;
}
// Three bits of every row, from bit Shift on, less 4, as a float.
template <int Shift>
HAVERSACK_INLINE Floats three_bit_floats(Quads w) {
    return each<Floats>([&](int i) { return static_cast<float>((w.v[4 * i + Shift / 8] >> Shift % 8 & 7) - 4); });
}
// Into the second-level cache.
HAVERSACK_INLINE void prefetch_far(const void *p) { __builtin_prefetch(p, 0, 2); }

}  // namespace haversack::HAVERSACK_TARGET
