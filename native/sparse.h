// Products that read only some input channels: out[n, outputs] = sum over the active inputs j of x_j * w[j, :], plus a low-rank
// product of the inputs that are not active. Layout columns-1 and the definition are in kernels/sparse.py.
#pragma once
#include <cstdint>

#include "base/isa.h"
#include "matmul.h"

namespace haversack {

// Outputs of one block, whose numbers for one channel lie side by side; int4 pads outputs to a multiple of sparse_unit.
constexpr int64_t sparse_block = 2048, sparse_int4_block = 4096, sparse_unit = 128;

// A matrix in layout columns-1: blocks follow one another, in a block the channels.
struct Channels {
    const uint8_t *data;  // any alignment
    int64_t outputs, inputs;
    int64_t group;  // int4: outputs that share a scale, 64 or 128; floats 0
    Kind kind;      // f32, f16, bf16 or int4

    bool packed() const { return kind == Kind::int4; }
    int64_t block() const { return packed() ? sparse_int4_block : sparse_block; }
    int64_t padded() const { return packed() ? (outputs + sparse_unit - 1) / sparse_unit * sparse_unit : outputs; }
    int64_t number_bytes() const { return kind == Kind::f32 ? 4 : 2; }
    // int4: the scales of a channel's groups, in whole cache lines.
    int64_t header_bytes(int64_t count) const { return ((count + group - 1) / group * 2 + 63) / 64 * 64; }
    // Bytes of one channel for `count` outputs: what is read when it is active.
    int64_t run_bytes(int64_t count) const { return packed() ? header_bytes(count) + count / 2 : count * number_bytes(); }
    int64_t channel_bytes() const {
        int64_t bytes = 0;
        for (int64_t first = 0; first < padded(); first += block())
            bytes += run_bytes(padded() - first < block() ? padded() - first : block());
        return bytes;
    }
    int64_t bytes() const { return channel_bytes() * inputs; }
};

struct SparseProduct {
    Channels weights;
    const float *limits;  // [inputs]: input j is active where |x_j| is not at most limits[j]
    Channels down, up;    // inputs -> rank and rank -> outputs, floats; down.outputs 0: no low-rank product
};

struct SparseCall {
    const float *x;  // [n, inputs]
    int64_t n;
    float *out;         // [n, outputs]
    const float *add;   // [n, outputs] or nullptr; may be out
    const float *bias;  // [outputs] or nullptr; added last
    const bool *whole;  // [n] or nullptr: rows whose inputs are all active
    bool int8;          // int4 weights: activations rounded to int8 per 32 channels and group of outputs
    int64_t counts[2];  // rows that were not whole, and their active inputs: added to
};

struct SparseKernels {
    void (*multiply)(const SparseProduct &product, SparseCall &call);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::SparseKernels, sparse)
