// Products with one plane of a nested matrix: its base codes of some bits, or a residual of one bit: see kernels/nested.py.
#pragma once
#include <cstdint>

#include "base/isa.h"

namespace haversack {

// Blocks of 16 rows; in a block the groups of columns, the last perhaps shorter. A group is, for each bit, one 16-bit mask
// of rows a column, then the 16 scales and, of a base, the 16 zeros, as f16.
struct NestedPlane {
    const uint8_t *data;
    int64_t rows, columns, group;
    int bits;   // of a code; a residual has one
    bool base;  // code - zero, or 2 * code - 1

    int64_t groups() const { return (columns + group - 1) / group; }
    int64_t blocks() const { return (rows + 15) / 16; }
    int64_t block_bytes() const { return columns * bits * 2 + groups() * (base ? 64 : 32); }
    int64_t bytes() const { return blocks() * block_bytes(); }
};

struct NestedKernels {
    // out[n, rows] += the plane times x[n, columns]. One chain of sums along the columns of a group for each bit; groups
    // are added in order, from zero, and their sum is added to out.
    void (*add)(const NestedPlane &plane, const float *x, int64_t n, float *out);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::NestedKernels, nested)
