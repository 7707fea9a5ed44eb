// From one row of logits to one token: see kernels/sampling.py.
#pragma once
#include <cstdint>

#include "base/isa.h"

namespace haversack {

struct Filters {
    float temperature;  // 0: the largest score
    int64_t top_k;      // 0: off
    double top_p, min_p;
    float penalty;
    const int32_t *history;
    int64_t seen;            // numbers in history
    const uint8_t *allowed;  // one for each of the first `known` tokens: 0 excludes it; nullptr: all may be drawn
    int64_t known;
};

// All return false (greedy: -1) when logits, or the scores after penalty and temperature, hold NaN or plus infinity or nothing
// finite.
struct SamplingKernels {
    int64_t (*greedy)(const float *logits, int64_t n);
    bool (*filter)(const float *logits, int64_t n, const Filters &filters, float *out);  // out may be logits
    // number in [0, 1) chooses the token. Only this one looks at what is allowed.
    bool (*sample)(const float *logits, int64_t n, const Filters &filters, double number, int64_t *token,
                   double *log_probability);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::SamplingKernels, sampling)
