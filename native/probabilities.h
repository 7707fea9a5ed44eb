// Scores to probabilities: see kernels/probabilities.py.
#pragma once
#include <cstdint>

#include "base/isa.h"

namespace haversack {

struct ProbabilityKernels {
    // Return -1, or a row of x that has NaN, plus infinity or nothing finite (out is then undefined). out may be x.
    int64_t (*softmax)(const float *x, float *out, int64_t rows, int64_t width);
    int64_t (*log_softmax)(const float *x, float *out, int64_t rows, int64_t width);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::ProbabilityKernels, probabilities)
