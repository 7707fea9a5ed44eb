// One row of a norm, of rope and of the cache: shared by norms.cpp, rotary.cpp and attend.cpp, so that a fused kernel has the
// bits of its parts.
#pragma once
#include "simd/simd.h"

namespace haversack::HAVERSACK_TARGET {

HAVERSACK_INLINE int64_t sixteenfold(int64_t n) { return (n + lanes - 1) / lanes * lanes; }

// Calls each(i, n) for lanes i .. i + n - 1 of 0 .. width, n = 16 but for a tail.
template <typename Each>
HAVERSACK_INLINE void sixteens(int64_t width, const Each &each) {
    int64_t i = 0;
    for (; i + lanes <= width; i += lanes) each(i, lanes);
    if (i < width) each(i, width - i);
}
HAVERSACK_INLINE Floats load_n(const float *p, int64_t n) { return n == lanes ? load(p) : load_part(p, n); }
HAVERSACK_INLINE void store_n(float *p, Floats x, int64_t n) {
    if (n == lanes)
        store(p, x);
    else
        store_part(p, x, n);
}

// The sum of term(i, n), a vector whose lanes at n and behind it are 0: four accumulators, vector k goes to number k % 4.
template <typename Term>
HAVERSACK_INLINE float fixed_sum(int64_t width, const Term &term) {
    Floats a = zero(), b = zero(), c = zero(), d = zero();
    int64_t i = 0;
    for (; i + 4 * lanes <= width; i += 4 * lanes) {
        a = a + term(i, lanes);
        b = b + term(i + lanes, lanes);
        c = c + term(i + 2 * lanes, lanes);
        d = d + term(i + 3 * lanes, lanes);
    }
    const auto left = [&](int64_t at) { return width - at < lanes ? width - at : int64_t(lanes); };
    if (i < width) a = a + term(i, left(i));
    if (i + lanes < width) b = b + term(i + lanes, left(i + lanes));
    if (i + 2 * lanes < width) c = c + term(i + 2 * lanes, left(i + 2 * lanes));
    if (i + 3 * lanes < width) d = d + term(i + 3 * lanes, left(i + 3 * lanes));
    return sum((a + b) + (c + d));
}

HAVERSACK_INLINE void rms_norm_row(const float *x, const float *weight, float eps, float offset, float *out, int64_t width) {
    const float squares = fixed_sum(width, [&](int64_t i, int64_t n) {
        const Floats v = load_n(x + i, n);
        return v * v;
    });
    const Floats factor = set(1.0f / __builtin_sqrtf(squares / static_cast<float>(width) + eps)), shift = set(offset);
    sixteens(width,
             [&](int64_t i, int64_t n) { store_n(out + i, load_n(x + i, n) * factor * (shift + load_n(weight + i, n)), n); });
}

enum class RopeStyle : int32_t { half, interleaved };

// One head; cos and sin hold `pairs` numbers.
HAVERSACK_INLINE void rope_row(float *x, const float *cos, const float *sin, int64_t pairs, bool interleaved) {
    if (interleaved) {
        for (int64_t i = 0; i < pairs; ++i) {
            const float one = x[2 * i], two = x[2 * i + 1];
            x[2 * i] = one * cos[i] - two * sin[i];
            x[2 * i + 1] = two * cos[i] + one * sin[i];
        }
        return;
    }
    sixteens(pairs, [&](int64_t i, int64_t n) {
        const Floats one = load_n(x + i, n), two = load_n(x + pairs + i, n), c = load_n(cos + i, n), s = load_n(sin + i, n);
        store_n(x + i, one * c - two * s, n);
        store_n(x + pairs + i, two * c + one * s, n);
    });
}

HAVERSACK_INLINE void store_f16_row(const float *x, void *to, int64_t width) {
    sixteens(width, [&](int64_t i, int64_t n) {
        char *at = static_cast<char *>(to) + 2 * i;
        if (n == lanes)
            store_f16(at, load(x + i));
        else
            store_f16_part(at, load_part(x + i, n), n);
    });
}

// Integers are the nearest even of x * (127 / largest); a row that is not finite gets zeros and scale NaN. Returns the scale.
HAVERSACK_INLINE float store_int8_row(const float *x, int8_t *to, int64_t width) {
    const Ints magnitude = set_ints(0x7fffffff);  // as integers, infinity and NaN are the largest
    Ints top = set_ints(0);
    sixteens(width, [&](int64_t i, int64_t n) { top = larger(top, as_ints(load_n(x + i, n)) & magnitude); });
    const int32_t bits = largest(top);
    float size;
    std::memcpy(&size, &bits, sizeof size);
    const bool finite = bits < 0x7f800000;
    if (!finite || size < 1e-30f) {
        std::memset(to, 0, static_cast<size_t>(width));
        return finite ? 0.0f : __builtin_nanf("");
    }
    const Floats factor = set(127.0f / size), low = set(-127.0f), high = set(127.0f);
    sixteens(width, [&](int64_t i, int64_t n) {
        const Floats rounded = round(min(max(load_n(x + i, n) * factor, low), high));
        if (n == lanes)
            store_i8(to + i, rounded);
        else
            store_i8_part(to + i, rounded, n);
    });
    return size / 127.0f;
}

}  // namespace haversack::HAVERSACK_TARGET
