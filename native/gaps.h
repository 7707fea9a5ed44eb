// What the keys around each gap of a text say about it: see kernels/gaps.py.
#pragma once
#include <cstdint>

#include "base/isa.h"

namespace haversack {

struct Gaps {
    const float
        *parts;  // [gaps + 2 window - 1, (2 + heads) channels]: of a key its query, its key, its value as each head adds it
    int64_t gaps, channels, heads, window;
    const float *bias, *weight, *shift;  // [channels]: what is added to the heads' sum; of the layer norm
    float eps;
    float *out;     // [gaps, width]
    int64_t width;  // at least 4 channels + 1, the numbers behind these are zeros
};

struct GapKernels {
    void (*features)(const Gaps &call);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::GapKernels, gaps)
