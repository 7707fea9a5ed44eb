// Normalisation of rows: see kernels/norms.py.
#pragma once
#include <cstdint>

#include "base/isa.h"

namespace haversack {

struct NormKernels {
    void (*rms_norm)(const float *x, const float *weight, float eps, float offset, float *out, int64_t rows, int64_t width);
    // bias may be nullptr.
    void (*layer_norm)(const float *x, const float *weight, const float *bias, float eps, float *out, int64_t rows,
                       int64_t width);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::NormKernels, norms)
