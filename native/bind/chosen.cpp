// Attention over chosen entries, for Python. A mismatch is answered with false: see bind/arrays.h.
#include "base/chosen.h"

#include <nanobind/nanobind.h>

#include "bind/arrays.h"
#include "bind/handles.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

// Whether the blocks cover the n queries and their entries ascend below the block's own.
bool sound(const Chosen &chosen, int64_t n, int64_t total) {
    if (chosen.bounds[0] != 0 || chosen.bounds[chosen.blocks] != n) return false;
    if (chosen.offsets[0] != 0 || chosen.offsets[chosen.blocks] != total) return false;
    for (int64_t b = 0; b < chosen.blocks; ++b)
        if (chosen.bounds[b + 1] <= chosen.bounds[b] || chosen.offsets[b + 1] < chosen.offsets[b]) return false;
    for (int64_t set = 0; set < chosen.sets; ++set)
        for (int64_t b = 0; b < chosen.blocks; ++b) {
            int64_t before = -1;
            for (int64_t i = chosen.offsets[b]; i < chosen.offsets[b + 1]; ++i) {
                const int64_t entry = chosen.entries[set * total + i];
                if (entry <= before || entry >= chosen.length + chosen.bounds[b]) return false;
                before = entry;
            }
        }
    return true;
}

bool chosen_attention(nb::handle q_, nb::handle keys, nb::handle values, nb::handle key_scales, nb::handle value_scales,
                      int64_t length, nb::handle bounds_, nb::handle offsets_, nb::handle entries_, nb::handle start_,
                      double scale, double softcap, nb::handle out_) {
    const LayerHandle layer(keys, values, key_scales, value_scales, Access::read);
    const Array q(q_, Access::read), bounds(bounds_, Access::read), offsets(offsets_, Access::read),
        entries(entries_, Access::read), start(start_, Access::read), out(out_, Access::write);
    if (!layer.fits || !q.of<float>(3) || !out.of<float>(3) || !out.same_shape(q) || q.size(2) != layer.cache.width ||
        q.size(1) < 1 || q.size(1) % layer.cache.kv_heads != 0)
        return false;
    const int64_t n = q.size(0), sets = entries.of<int64_t>(2) ? entries.size(0) : 0;
    if (!bounds.of<int64_t>(1) || bounds.size(0) < 2 || !offsets.of<int64_t>(1) || !offsets.same_shape(bounds)) return false;
    if (sets != 1 && sets != layer.cache.kv_heads) return false;
    if (!start.none() && !(start.of<int64_t>(1) && start.size(0) == n)) return false;
    if (!layer.holds(length, n)) return false;
    const Chosen chosen = {
        bounds.data<int64_t>(), offsets.data<int64_t>(), bounds.size(0) - 1, entries.data<int64_t>(), sets, length};
    if (!sound(chosen, n, entries.size(1))) return false;
    const Attention call = {
        q.data<float>(),           out.data<float>(),          n, q.size(1), length, n, start.data<int64_t>(), nullptr,
        static_cast<float>(scale), static_cast<float>(softcap)};
    const Unlocked unlocked;
    attend_chosen(layer.cache, call, chosen);
    return true;
}

}  // namespace

HAVERSACK_BIND(chosen) {
    const auto any = [] { return nb::arg().none(); };
    module.def("chosen_attention", &chosen_attention, any(), any(), any(), any(), any(), nb::arg(), any(), any(), any(), any(),
               nb::arg(), nb::arg(), any());
}
