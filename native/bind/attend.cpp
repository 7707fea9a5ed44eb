// The cache and attention, for Python. A mismatch is answered with false: see bind/arrays.h.
#include "attend.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/unique_ptr.h>

#include <memory>

#include "bind/arrays.h"
#include "bind/handles.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

using Layer = LayerHandle;

bool attention(nb::handle q_, nb::handle keys, nb::handle values, nb::handle key_scales, nb::handle value_scales,
               int64_t length, nb::handle start_, nb::handle mask_, double scale, double softcap, nb::handle out_,
               nb::handle bias_, nb::handle places_) {
    const Layer layer(keys, values, key_scales, value_scales, Access::read);
    const Array q(q_, Access::read), start(start_, Access::read), mask(mask_, Access::read), out(out_, Access::write);
    const Array bias(bias_, Access::read), places(places_, Access::read);
    if (!layer.fits || !q.of<float>(3) || !out.of<float>(3) || !out.same_shape(q) || q.size(2) != layer.cache.width ||
        q.size(1) < 1 || q.size(1) % layer.cache.kv_heads != 0)
        return false;
    const int64_t n = q.size(0);
    if (!start.none() && !(start.of<int64_t>(1) && start.size(0) == n)) return false;
    if (!mask.none() && !(mask.of<bool>(2) && mask.size(0) == n)) return false;
    if (bias.none() != places.none()) return false;
    if (!bias.none() && !(bias.of<float>(2) && bias.size(0) == q.size(1) && bias.size(1) % 2 == 1 && places.of<int64_t>(1) &&
                          places.size(0) == n))
        return false;
    const int64_t fresh = mask.none() ? n : mask.size(1);
    if (!layer.holds(length, fresh)) return false;
    if (n == 0) return true;
    const Attention call = {q.data<float>(),
                            out.data<float>(),
                            n,
                            q.size(1),
                            length,
                            fresh,
                            start.data<int64_t>(),
                            mask.data<uint8_t>(),
                            static_cast<float>(scale),
                            static_cast<float>(softcap),
                            bias.data<float>(),
                            bias.none() ? 0 : bias.size(1) / 2,
                            places.data<int64_t>()};
    const Unlocked unlocked;
    attend().attention(layer.cache, call);
    return true;
}

bool cache_write(nb::handle keys, nb::handle values, nb::handle key_scales, nb::handle value_scales, int64_t start,
                 nb::handle k_, nb::handle v_) {
    const Layer layer(keys, values, key_scales, value_scales, Access::write);
    const Array k(k_, Access::read), v(v_, Access::read);
    if (!layer.fits || !layer.takes(k) || !layer.takes(v) || !v.same_shape(k) || !layer.holds(start, k.size(0))) return false;
    const Unlocked unlocked;
    cache().write(layer.cache, start, k.data<float>(), v.data<float>(), k.size(0));
    return true;
}

bool cache_gather(nb::handle keys, nb::handle values, nb::handle key_scales, nb::handle value_scales, int64_t start,
                  nb::handle indices_) {
    const Layer layer(keys, values, key_scales, value_scales, Access::write);
    const Array indices(indices_, Access::read);
    if (!layer.fits || !indices.of<int64_t>(1) || start < 0) return false;
    int64_t before = start - 1;
    for (int64_t i = 0; i < indices.size(0); ++i) {
        const int64_t index = indices.data<int64_t>()[i];
        if (index <= before || index >= layer.cache.capacity) return false;
        before = index;
    }
    const Unlocked unlocked;
    cache().gather(layer.cache, start, indices.data<int64_t>(), indices.size(0));
    return true;
}

bool rope_write(nb::handle q_, nb::handle k_, nb::handle v_, nb::handle cos_, nb::handle sin_, nb::handle keys,
                nb::handle values, nb::handle key_scales, nb::handle value_scales, int64_t start, bool interleaved,
                nb::handle q_norm_, nb::handle k_norm_, double eps, double offset) {
    const Layer layer(keys, values, key_scales, value_scales, Access::write);
    const Array q(q_, Access::write), k(k_, Access::write), v(v_, Access::read), cos(cos_, Access::read),
        sin(sin_, Access::read);
    const Array q_norm(q_norm_, Access::read), k_norm(k_norm_, Access::read);
    if (!layer.fits || !layer.takes(k) || !layer.takes(v) || !v.same_shape(k) || !layer.holds(start, k.size(0))) return false;
    const int64_t n = k.size(0), width = layer.cache.width;
    if (!q.of<float>(3) || q.size(0) != n || q.size(2) != width) return false;
    if (cos.none() != sin.none()) return false;
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
    cache().rope_write(layer.cache, start, entries);
    return true;
}

}  // namespace

HAVERSACK_BIND(attend) {
    nb::class_<Layer>(module, "CacheLayer");
    module.def(
        "cache_layer",
        [](nb::handle keys, nb::handle values, nb::handle key_scales, nb::handle value_scales) -> nb::object {
            auto layer = std::make_unique<Layer>(keys, values, key_scales, value_scales, Access::write);
            return layer->fits ? nb::cast(std::move(layer)) : nb::none();
        },
        nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg().none());
    const auto any = [] { return nb::arg().none(); };
    module.def("attention", &attention, any(), any(), any(), any(), any(), nb::arg(), any(), any(), nb::arg(), nb::arg(), any(),
               any(), any());
    module.def("cache_write", &cache_write, any(), any(), any(), any(), nb::arg(), any(), any());
    module.def("cache_gather", &cache_gather, any(), any(), any(), any(), nb::arg(), any());
    module.def("rope_write", &rope_write, any(), any(), any(), any(), any(), any(), any(), any(), any(), nb::arg(), nb::arg(),
               any(), any(), nb::arg(), nb::arg());
}
