// The keys and values of one block: see kernels/attend.py.
#pragma once
#include <cstdint>

#include "base/isa.h"

namespace haversack {

enum class CacheKind : int32_t { f32, f16, int8 };

// keys, values [kv_heads, capacity, width] of kind; for int8 scales [kv_heads, capacity].
struct Cache {
    void *keys, *values;
    float *key_scales, *value_scales;
    int64_t kv_heads, capacity, width;
    CacheKind kind;

    int64_t entry_bytes() const { return width * (kind == CacheKind::f32 ? 4 : kind == CacheKind::f16 ? 2 : 1); }
};

struct NewEntries {
    float *q, *k;    // [n, heads, width], [n, kv_heads, width]; normed and turned in place
    const float *v;  // [n, kv_heads, width]
    int64_t n, heads;
    const float *cos, *sin;  // [n, pairs], or nullptr
    int64_t pairs;
    bool interleaved;
    const float *q_norm, *k_norm;  // [width], or nullptr
    float eps, offset;
};

struct CacheKernels {
    // k, v [n, kv_heads, width] to the entries start .. start + n - 1.
    void (*write)(const Cache &cache, int64_t start, const float *k, const float *v, int64_t n);
    // Entry start + i becomes entry indices[i]; indices ascend and are >= start.
    void (*gather)(const Cache &cache, int64_t start, const int64_t *indices, int64_t count);
    // Norm of the heads, rope, write: what lies between a block's products and its attention.
    void (*rope_write)(const Cache &cache, int64_t start, const NewEntries &entries);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::CacheKernels, cache)
