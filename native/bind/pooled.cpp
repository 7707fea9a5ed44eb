// Many caches in one allocation, for Python: see kernels/pooled.py. A mismatch is answered with false: see bind/arrays.h.
//
// A run is some rows of a call that belong to one cache: its bits are those of a call with that run alone. Runs of one row (texts
// that are being decoded) are dealt out to threads; longer ones (prompts that are being read) take all threads in turn.
#include <nanobind/nanobind.h>

#include "attend.h"
#include "base/pool.h"
#include "bind/arrays.h"
#include "bind/register.h"
#include "cache.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

constexpr int64_t least_work = 1 << 17;  // multiplications that are worth handing to a thread

struct Run {
    int64_t row, rows, slot, entry;
};

// The four arrays of kernels/pooled.py's PoolLayer, and runs i64 [count, 4] over `total` rows.
struct Pool {
    Array keys, values, key_scales, value_scales, runs_;
    Cache whole = {};
    const Run *runs = nullptr;
    int64_t count = 0, slots = 0;
    bool fits = false;

    Pool(nb::handle keys_, nb::handle values_, nb::handle key_scales_, nb::handle value_scales_, nb::handle given,
         int64_t total, Access access)
        : keys(keys_, access), values(values_, access), key_scales(key_scales_, access), value_scales(value_scales_, access),
          runs_(given, Access::read) {
        const bool f32 = keys.of<float>(4) && values.of<float>(), f16 = keys.of<Half>(4) && values.of<Half>();
        const bool int8 = keys.of<int8_t>(4) && values.of<int8_t>();
        if ((!f32 && !f16 && !int8) || !values.same_shape(keys) || keys.numbers() == 0) return;
        if (int8 ? !scales_fit(key_scales) || !scales_fit(value_scales) : !key_scales.none() || !value_scales.none()) return;
        if (!runs_.of<int64_t>(2) || runs_.size(1) != 4) return;
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
        runs = reinterpret_cast<const Run *>(runs_.data<int64_t>());
        count = runs_.size(0);
        int64_t row = 0;
        for (int64_t i = 0; i < count; ++i) {  // rows follow one another and fill the call
            const Run &run = runs[i];
            if (run.row != row || run.rows < 1 || run.rows > total - row || run.slot < 0 || run.slot >= slots) return;
            if (run.entry < 0 || run.entry > whole.capacity - run.rows) return;
            row += run.rows;
        }
        fits = row == total;
    }
    bool scales_fit(const Array &scales) const {
        return scales.of<float>(3) && scales.size(0) == keys.size(0) && scales.size(1) == keys.size(1) &&
               scales.size(2) == keys.size(2);
    }
    bool takes(const Array &x) const { return x.of<float>(3) && x.size(1) == whole.kv_heads && x.size(2) == whole.width; }

    Cache cache(int64_t slot) const {
        Cache one = whole;
        const int64_t entries = slot * whole.kv_heads * whole.capacity;
        one.keys = static_cast<char *>(whole.keys) + entries * whole.entry_bytes();
        one.values = static_cast<char *>(whole.values) + entries * whole.entry_bytes();
        if (whole.kind == CacheKind::int8) one.key_scales += entries, one.value_scales += entries;
        return one;
    }
};

bool pool_attention(nb::handle q_, nb::handle keys, nb::handle values, nb::handle key_scales, nb::handle value_scales,
                    nb::handle runs, nb::handle start_, double scale, double softcap, nb::handle out_) {
    const Array q(q_, Access::read), start(start_, Access::read), out(out_, Access::write);
    if (!q.of<float>(3) || !out.of<float>(3) || !out.same_shape(q)) return false;
    const int64_t n = q.size(0), heads = q.size(1), width = q.size(2);
    const Pool pool(keys, values, key_scales, value_scales, runs, n, Access::read);
    if (!pool.fits || width != pool.whole.width || heads < 1 || heads % pool.whole.kv_heads != 0) return false;
    if (!start.none() && !(start.of<int64_t>(1) && start.size(0) == n)) return false;
    const auto attend_run = [&](const Run &run) {
        const Attention call = {q.data<float>() + run.row * heads * width,
                                out.data<float>() + run.row * heads * width,
                                run.rows,
                                heads,
                                run.entry,
                                run.rows,
                                start.none() ? nullptr : start.data<int64_t>() + run.row,
                                nullptr,
                                static_cast<float>(scale),
                                static_cast<float>(softcap)};
        attend().attention(pool.cache(run.slot), call);
    };
    const Unlocked unlocked;
    int64_t single = 0, seen = 0;
    for (int64_t i = 0; i < pool.count; ++i) {
        if (pool.runs[i].rows == 1)
            ++single, seen += pool.runs[i].entry + 1;
        else
            attend_run(pool.runs[i]);
    }
    if (single == 0) return true;
    const int64_t work = 1 + heads * seen * width / single;
    parallel(pool.count, 1 + least_work / work, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            if (pool.runs[i].rows == 1) attend_run(pool.runs[i]);
    });
    return true;
}

bool pool_write(nb::handle q_, nb::handle k_, nb::handle v_, nb::handle cos_, nb::handle sin_, nb::handle keys,
                nb::handle values, nb::handle key_scales, nb::handle value_scales, nb::handle runs, bool interleaved,
                nb::handle q_norm_, nb::handle k_norm_, double eps, double offset) {
    const Array q(q_, Access::write), k(k_, Access::write), v(v_, Access::read), cos(cos_, Access::read),
        sin(sin_, Access::read);
    const Array q_norm(q_norm_, Access::read), k_norm(k_norm_, Access::read);
    if (!k.of<float>(3) || !v.same_shape(k)) return false;
    const int64_t n = k.size(0);
    const Pool pool(keys, values, key_scales, value_scales, runs, n, Access::write);
    if (!pool.fits || !pool.takes(k) || !pool.takes(v)) return false;
    const int64_t width = pool.whole.width, kv_heads = pool.whole.kv_heads;
    if (!q.of<float>(3) || q.size(0) != n || q.size(2) != width || cos.none() != sin.none()) return false;
    if (!cos.none() && !(cos.of<float>(2) && sin.of<float>(2) && sin.same_shape(cos) && cos.size(0) == n && cos.size(1) >= 1 &&
                         2 * cos.size(1) <= width))
        return false;
    for (const Array *norm : {&q_norm, &k_norm})
        if (!norm->none() && !(norm->of<float>(1) && norm->size(0) == width)) return false;
    const int64_t heads = q.size(1), pairs = cos.none() ? 0 : cos.size(1);
    const Unlocked unlocked;
    for (int64_t i = 0; i < pool.count; ++i) {
        const Run &run = pool.runs[i];
        const NewEntries entries = {q.data<float>() + run.row * heads * width,
                                    k.data<float>() + run.row * kv_heads * width,
                                    v.data<float>() + run.row * kv_heads * width,
                                    run.rows,
                                    heads,
                                    cos.none() ? nullptr : cos.data<float>() + run.row * pairs,
                                    cos.none() ? nullptr : sin.data<float>() + run.row * pairs,
                                    pairs,
                                    interleaved,
                                    q_norm.data<float>(),
                                    k_norm.data<float>(),
                                    static_cast<float>(eps),
                                    static_cast<float>(offset)};
        cache().rope_write(pool.cache(run.slot), run.entry, entries);
    }
    return true;
}

}  // namespace

HAVERSACK_BIND(pooled) {
    const auto any = [] { return nb::arg().none(); };
    module.def("pool_attention", &pool_attention, any(), any(), any(), any(), any(), any(), any(), nb::arg(), nb::arg(), any());
    module.def("pool_write", &pool_write, any(), any(), any(), any(), any(), any(), any(), any(), any(), any(), nb::arg(),
               any(), any(), nb::arg(), nb::arg());
}
