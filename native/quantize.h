// Activations rounded to int8: the inputs of the packed matrix products.
#pragma once
#include <cstdint>

#include "base/isa.h"

namespace haversack {

// One scale for all inputs, and the integer that stands for 0; scale 0: none is fixed.
struct Fixed {
    float scale = 0.0f;
    int32_t zero = 0;
};

struct QuantizeKernels {
    // One token: x[columns] -> q[groups * group] (what stands for 0 behind the last column), scales[groups],
    // corrections[groups]. Fixed scale 0: each group's scale is its largest magnitude / 127, and the integer is the nearest
    // even of x * (127 / largest). Else the integer is the nearest even of x * (1 / scale), plus zero, clipped to -128..127.
    // A group that holds NaN or infinity gets integers 0 and scale NaN. corrections = -offset * sum of the integers.
    void (*token)(const float *x, int64_t columns, int64_t group, Fixed fixed, int32_t offset, int8_t *q, float *scales,
                  int32_t *corrections);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::QuantizeKernels, quantize)
