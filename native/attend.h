// Attention over a cache of keys and values: see kernels/attend.py.
#pragma once
#include <cstdint>

#include "base/isa.h"
#include "cache.h"

namespace haversack {

struct Attention {
    const float *q;  // [n, heads, width]
    float *out;      // [n, heads, width]
    int64_t n, heads;
    int64_t length, fresh;  // entries before this call, and new ones behind them
    const int64_t *start;   // [n] first entry a query may see, or nullptr
    const uint8_t *mask;    // [n, fresh], or nullptr: fresh = n and query i sees new entries 0 .. i
    float scale;
    float softcap;                    // 0: none
    const float *bias = nullptr;      // [heads, 2 * reach + 1]: what a score gets by how far behind its query an entry lies
    int64_t reach = 0;                // entries farther away count as `reach` away
    const int64_t *places = nullptr;  // [n] entry that a query stands at, where there is a bias
};

struct AttendKernels {
    void (*attention)(const Cache &cache, const Attention &call);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::AttendKernels, attend)
