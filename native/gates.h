// Gates of feed-forward blocks and bounds of logits: see kernels/gates.py.
#pragma once
#include <cstdint>

#include "base/isa.h"

namespace haversack {

enum class Activation : int32_t { silu, gelu, gelu_tanh, relu };

struct GateKernels {
    // out = activation(gate) * up; up may be nullptr, out may be gate or up.
    void (*gate)(const float *gate, const float *up, float *out, int64_t size, Activation activation);
    // out = cap * tanh(x / cap); out may be x.
    void (*softcap)(const float *x, float *out, int64_t size, float cap);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::GateKernels, gates)
