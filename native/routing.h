// Routers of mixtures of experts: see kernels/routing.py.
#pragma once
#include <cstdint>

#include "base/isa.h"

namespace haversack {

struct Routing {
    const float *logits;  // [n, experts]
    int64_t n, experts, top;
    bool sigmoid;     // scores are logistic functions of the chosen logits, else softmax
    bool chosen;      // softmax over the chosen logits, else over all
    bool normalized;  // shares are divided by their sum
    int32_t *choice;  // [n, top], the highest rated first
    float *shares;    // [n, top]
};

struct RoutingKernels {
    void (*route)(const Routing &routing);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::RoutingKernels, routing)
