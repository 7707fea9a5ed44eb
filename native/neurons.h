// Products with the rows that a gate left: out[n, rows] = gate * (row . x), and of a row whose gate is 0 nothing is read. A
// row lies in one piece: the matrix is in layout columns-1 of its transpose, whose channels are the rows (kernels/neurons.py).
#pragma once
#include <cstdint>

#include "base/isa.h"
#include "sparse.h"

namespace haversack {

struct NeuronCall {
    Channels matrix;  // inputs: the rows of the matrix; outputs: its columns
    const float *x;   // [n, columns]
    int64_t n;
    const float *gate;  // [n, rows]
    float *out;         // [n, rows]; may be gate
};

struct NeuronKernels {
    void (*gated)(const NeuronCall &call);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::NeuronKernels, neurons)
