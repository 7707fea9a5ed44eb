// What a product of static int8 inputs leaves out: inputs beyond the grid, and outputs beyond theirs: see kernels/shadow.py.
#pragma once
#include <cstdint>

#include "base/isa.h"
#include "matmul.h"

namespace haversack {

struct Shadow {
    Weights weights;        // int8, one scale a row
    const int8_t *hot;      // [count, rows]: the codes of inputs that often pass the grid, or nullptr
    const int32_t *places;  // [columns]: which row of `hot` an input is, -1 for none; nullptr without `hot`
    float scale;            // of the inputs
    bool inputs;            // add what inputs beyond -128..127 miss
    float out_scale;        // of the outputs; 0: they are not rounded
    bool outputs;           // round outputs that reach the ends of the grid anew, unclipped
};

struct ShadowKernels {
    // y [n, rows] is the product of x [n, columns], rounded to the grid and clipped, with the weights; it may be `out`.
    // out = add + what y becomes + bias; `add` [n, rows] (may be out) and `bias` [rows] may be nullptr.
    void (*finish)(const Shadow &shadow, const float *x, int64_t n, const float *y, float *out, const float *add,
                   const float *bias);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::ShadowKernels, shadow)
