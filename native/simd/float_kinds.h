// How 16 floats lie in memory, a whole vector of them or the first n: a template parameter of the kernels that read float weights.
#pragma once

#include "simd/simd.h"

namespace haversack::HAVERSACK_TARGET {

struct F32 {
    static constexpr int64_t bytes = 4;
    HAVERSACK_INLINE Floats whole(const uint8_t *p) { return load(p); }
    HAVERSACK_INLINE Floats part(const uint8_t *p, int64_t n) { return load_part(p, n); }
};
struct F16 {
    static constexpr int64_t bytes = 2;
    HAVERSACK_INLINE Floats whole(const uint8_t *p) { return load_f16(p); }
    HAVERSACK_INLINE Floats part(const uint8_t *p, int64_t n) { return load_f16_part(p, n); }
};
struct Bf16 {
    static constexpr int64_t bytes = 2;
    HAVERSACK_INLINE Floats whole(const uint8_t *p) { return load_bf16(p); }
    HAVERSACK_INLINE Floats part(const uint8_t *p, int64_t n) { return load_bf16_part(p, n); }
};

}  // namespace haversack::HAVERSACK_TARGET
