// What is left of a matrix when its bulk is packed: single weights, and inputs that go another way: see kernels/outliers.py.
#pragma once
#include <cstdint>

#include "base/isa.h"

namespace haversack {

struct OutlierKernels {
    // out[n, rows] += values times x[n, columns]; row r has the weights starts[r] .. starts[r + 1] - 1, weight i belongs to
    // input at[i]. One chain of fused sums a row, in their order, which is then added to out.
    void (*add)(const float *x, int64_t n, int64_t columns, const int32_t *starts, const uint16_t *at, const float *values,
                int64_t rows, float *out);
    // out[n, count] = x[n, columns] at the inputs `at`.
    void (*gather)(const float *x, int64_t n, int64_t columns, const int32_t *at, int64_t count, float *out);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::OutlierKernels, outliers)
