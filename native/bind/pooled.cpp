// Many caches in one allocation, for Python: see kernels/pooled.py. A mismatch is answered with false: see bind/arrays.h.
#include "bind/pooled.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/unique_ptr.h>

#include <memory>

#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

bool pool_attention(nb::handle q_, nb::handle keys, nb::handle values, nb::handle key_scales, nb::handle value_scales,
                    nb::handle runs_, nb::handle start_, double scale, double softcap, nb::handle out_) {
    const Array q(q_, Access::read), start(start_, Access::read), out(out_, Access::write), runs(runs_, Access::read);
    if (!q.of<float>(3) || !out.of<float>(3) || !out.same_shape(q)) return false;
    const int64_t n = q.size(0), heads = q.size(1);
    const PoolHandle pool(keys, values, key_scales, value_scales, Access::read);
    if (!pool.fits || !pool.runs_fit(runs, n) || q.size(2) != pool.whole.width || heads < 1 || heads % pool.whole.kv_heads != 0)
        return false;
    if (!start.none() && !(start.of<int64_t>(1) && start.size(0) == n)) return false;
    const Attention call = {
        q.data<float>(),           out.data<float>(),          n, heads, 0, n, start.data<int64_t>(), nullptr,
        static_cast<float>(scale), static_cast<float>(softcap)};
    const Unlocked unlocked;
    attend_runs(pool.runs(runs), call);
    return true;
}

bool pool_write(nb::handle q_, nb::handle k_, nb::handle v_, nb::handle cos_, nb::handle sin_, nb::handle keys,
                nb::handle values, nb::handle key_scales, nb::handle value_scales, nb::handle runs_, bool interleaved,
                nb::handle q_norm_, nb::handle k_norm_, double eps, double offset) {
    const Array q(q_, Access::write), k(k_, Access::write), v(v_, Access::read), cos(cos_, Access::read),
        sin(sin_, Access::read);
    const Array q_norm(q_norm_, Access::read), k_norm(k_norm_, Access::read), runs(runs_, Access::read);
    const PoolHandle pool(keys, values, key_scales, value_scales, Access::write);
    if (!pool.fits || !pool.takes(k) || !v.same_shape(k) || !pool.takes(v)) return false;
    const int64_t n = k.size(0), width = pool.whole.width;
    if (!pool.runs_fit(runs, n)) return false;
    if (!q.of<float>(3) || q.size(0) != n || q.size(2) != width || cos.none() != sin.none()) return false;
    if (!cos.none() && !(cos.of<float>(2) && sin.of<float>(2) && sin.same_shape(cos) && cos.size(0) == n && cos.size(1) >= 1 &&
                         2 * cos.size(1) <= width))
        return false;
    for (const Array *norm : {&q_norm, &k_norm})
        if (!norm->none() && !(norm->of<float>(1) && norm->size(0) == width)) return false;
    const NewEntries entries = {q.data<float>(),
                                k.data<float>(),
                                v.data<float>(),
                                n,
                                q.size(1),
                                cos.data<float>(),
                                sin.data<float>(),
                                cos.none() ? 0 : cos.size(1),
                                interleaved,
                                q_norm.data<float>(),
                                k_norm.data<float>(),
                                static_cast<float>(eps),
                                static_cast<float>(offset)};
    const Unlocked unlocked;
    write_runs(pool.runs(runs), entries);
    return true;
}

}  // namespace

HAVERSACK_BIND(pooled) {
    nb::class_<PoolHandle>(module, "PoolLayer");
    module.def(
        "pool_layer",
        [](nb::handle keys, nb::handle values, nb::handle key_scales, nb::handle value_scales) -> nb::object {
            auto pool = std::make_unique<PoolHandle>(keys, values, key_scales, value_scales, Access::write);
            return pool->fits ? nb::cast(std::move(pool)) : nb::none();
        },
        nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg().none());
    const auto any = [] { return nb::arg().none(); };
    module.def("pool_attention", &pool_attention, any(), any(), any(), any(), any(), any(), any(), nb::arg(), nb::arg(), any());
    module.def("pool_write", &pool_write, any(), any(), any(), any(), any(), any(), any(), any(), any(), any(), nb::arg(),
               any(), any(), nb::arg(), nb::arg());
}
