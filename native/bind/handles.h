// What Python holds for a matrix and for a cache layer: checked once, used by every call.
#pragma once
#include "bind/arrays.h"
#include "cache.h"
#include "matmul.h"

namespace haversack {

// A matrix as the kernels take it; keeps the array that holds the bytes.
struct MatrixHandle {
    Weights weights;
    nanobind::object owner;
};

// Whether a scale and zero point for all inputs can be used.
inline bool sound(Fixed fixed) {
    return fixed.scale >= 1e-30f && fixed.scale < 1e30f && fixed.zero >= -128 && fixed.zero <= 127;
}

// The four arrays of kernels/attend.py's CacheLayer.
struct LayerHandle {
    Array keys, values, key_scales, value_scales;
    Cache cache = {};
    bool fits = false;

    LayerHandle(nanobind::handle keys_, nanobind::handle values_, nanobind::handle key_scales_, nanobind::handle value_scales_,
                Access access)
        : keys(keys_, access), values(values_, access), key_scales(key_scales_, access), value_scales(value_scales_, access) {
        const bool f32 = keys.of<float>(3) && values.of<float>(), f16 = keys.of<Half>(3) && values.of<Half>();
        const bool int8 = keys.of<int8_t>(3) && values.of<int8_t>();
        if ((!f32 && !f16 && !int8) || !values.same_shape(keys) || keys.numbers() == 0) return;
        if (int8 ? !scales_fit(key_scales) || !scales_fit(value_scales) : !key_scales.none() || !value_scales.none()) return;
        cache = {keys.data<void>(),
                 values.data<void>(),
                 key_scales.data<float>(),
                 value_scales.data<float>(),
                 keys.size(0),
                 keys.size(1),
                 keys.size(2),
                 f32   ? CacheKind::f32
                 : f16 ? CacheKind::f16
                       : CacheKind::int8};
        fits = true;
    }
    bool scales_fit(const Array &scales) const {
        return scales.of<float>(2) && scales.size(0) == keys.size(0) && scales.size(1) == keys.size(1);
    }
    bool holds(int64_t start, int64_t count) const { return start >= 0 && count >= 0 && start <= cache.capacity - count; }
    // [n, kv_heads, width]
    bool takes(const Array &x) const { return x.of<float>(3) && x.size(1) == cache.kv_heads && x.size(2) == cache.width; }
};

}  // namespace haversack
