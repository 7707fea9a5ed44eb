// Rotary position embedding: see kernels/rotary.py.
#pragma once
#include <cstdint>

#include "base/isa.h"

namespace haversack {

struct RotaryKernels {
    // cos, sin [n, pairs] = cosine and sine of positions times frequencies, computed in f64, times scale.
    void (*table)(const int64_t *positions, int64_t n, const double *frequencies, int64_t pairs, double scale, float *cos,
                  float *sin);
    // x [n, heads, width] in place; the first 2 * pairs numbers of each head turn.
    void (*rope)(float *x, const float *cos, const float *sin, int64_t n, int64_t heads, int64_t width, int64_t pairs,
                 bool interleaved);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::RotaryKernels, rotary)
