// What Python holds for a pool of caches: checked once, used by every call.
#pragma once
#include "base/pooled.h"
#include "bind/arrays.h"

namespace haversack {

// The four arrays of kernels/pooled.py's PoolLayer.
struct PoolHandle {
    Array keys, values, key_scales, value_scales;
    Cache whole = {};
    int64_t slots = 0;
    bool fits = false;

    PoolHandle(nanobind::handle keys_, nanobind::handle values_, nanobind::handle key_scales_, nanobind::handle value_scales_,
               Access access)
        : keys(keys_, access), values(values_, access), key_scales(key_scales_, access), value_scales(value_scales_, access) {
        const bool f32 = keys.of<float>(4) && values.of<float>(), f16 = keys.of<Half>(4) && values.of<Half>();
        const bool int8 = keys.of<int8_t>(4) && values.of<int8_t>();
        if ((!f32 && !f16 && !int8) || !values.same_shape(keys) || keys.numbers() == 0) return;
        if (int8 ? !scales_fit(key_scales) || !scales_fit(value_scales) : !key_scales.none() || !value_scales.none()) return;
        whole = {keys.data<void>(),
                 values.data<void>(),
                 key_scales.data<float>(),
                 value_scales.data<float>(),
                 keys.size(1),
                 keys.size(2),
                 keys.size(3),
                 f32   ? CacheKind::f32
                 : f16 ? CacheKind::f16
                       : CacheKind::int8};
        slots = keys.size(0);
        fits = true;
    }
    bool scales_fit(const Array &scales) const {
        return scales.of<float>(3) && scales.size(0) == keys.size(0) && scales.size(1) == keys.size(1) &&
               scales.size(2) == keys.size(2);
    }
    bool takes(const Array &x) const { return x.of<float>(3) && x.size(1) == whole.kv_heads && x.size(2) == whole.width; }

    // `given` i64 [count, 4]: rows follow one another and are `total`, slots and entries exist.
    bool runs_fit(const Array &given, int64_t total) const {
        if (!given.of<int64_t>(2) || given.size(1) != 4) return false;
        const Run *runs = reinterpret_cast<const Run *>(given.data<int64_t>());
        int64_t row = 0;
        for (int64_t i = 0; i < given.size(0); ++i) {
            const Run &run = runs[i];
            if (run.row != row || run.rows < 1 || run.rows > total - row || run.slot < 0 || run.slot >= slots) return false;
            if (run.entry < 0 || run.entry > whole.capacity - run.rows) return false;
            row += run.rows;
        }
        return row == total;
    }
    Runs runs(const Array &given) const { return {whole, reinterpret_cast<const Run *>(given.data<int64_t>()), given.size(0)}; }
};

}  // namespace haversack
