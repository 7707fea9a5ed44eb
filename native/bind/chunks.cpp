// Chunks of keys, for Python. A mismatch is answered with false: see bind/arrays.h.
#include "base/chunks.h"

#include <nanobind/nanobind.h>

#include "bind/arrays.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

bool ascends(const int64_t *ends, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        if (ends[i + 1] <= ends[i]) return false;
    return ends[0] == 0;
}

// Whether blocks and borders ascend from 0, and the borders cover the blocks.
bool sound(const Array &bounds, const Array &borders, int64_t start, Blocks &blocks, Chunks &chunks) {
    if (!bounds.of<int64_t>(1) || bounds.size(0) < 2 || !borders.of<int64_t>(1) || borders.size(0) < 2 || start < 0)
        return false;
    blocks = {bounds.data<int64_t>(), bounds.size(0) - 1, start};
    chunks = {borders.data<int64_t>(), borders.size(0) - 1, 0};
    return ascends(blocks.bounds, blocks.count) && ascends(chunks.borders, chunks.count) && chunks.count < INT32_MAX &&
           chunks.borders[chunks.count] - blocks.bounds[blocks.count] >= start;
}

bool score(nb::handle q_, nb::handle keys_, int64_t done, int64_t start, nb::handle bounds_, nb::handle borders_,
           nb::handle sums_, int pooling, nb::handle out_) {
    const Array q(q_, Access::read), keys(keys_, Access::read), bounds(bounds_, Access::read), borders(borders_, Access::read),
        sums(sums_, Access::write), out(out_, Access::write);
    ChunkScores call = {};
    if (!sound(bounds, borders, start, call.blocks, call.chunks)) return false;
    if (!q.of<float>(3) || !keys.of<float>(3) || !sums.of<float>(3) || !out.of<float>(3)) return false;
    call.chunks.sets = sums.size(0);
    const int64_t n = call.blocks.bounds[call.blocks.count], sets = call.chunks.sets;
    call.q = q.data<float>(), call.heads = q.size(1), call.width = q.size(2);
    call.keys = keys.data<float>(), call.key_heads = keys.size(0), call.fresh = keys.size(1), call.done = done;
    if (n != q.size(0) || call.key_heads < 1 || call.heads < 1 || call.heads % call.key_heads != 0 || call.width < 1 ||
        keys.size(2) != call.width || (sets != 1 && sets != call.key_heads) || sums.size(1) != call.chunks.count ||
        sums.size(2) != call.width)
        return false;
    if (done < 0 || done > start || done + call.fresh != start + n) return false;
    if (out.size(0) != call.blocks.count || out.size(1) != sets || out.size(2) != call.chunks.count) return false;
    if (pooling < 0 || pooling > static_cast<int>(Pooling::largest)) return false;
    call.pooling = static_cast<Pooling>(pooling);
    call.sums = sums.data<float>(), call.scores = out.data<float>();
    const Unlocked unlocked;
    score_chunks(call);
    return true;
}

bool best(nb::handle scores_, nb::handle borders_, int64_t start, nb::handle bounds_, int64_t window, int64_t sinks,
          int64_t local, nb::handle offsets_, nb::handle out_) {
    const Array scores(scores_, Access::read), borders(borders_, Access::read), bounds(bounds_, Access::read),
        offsets(offsets_, Access::read), out(out_, Access::write);
    BestKeys call = {};
    if (!sound(bounds, borders, start, call.blocks, call.chunks)) return false;
    if (!scores.of<float>(3) || !offsets.of<int64_t>(1) || !offsets.same_shape(bounds) || !out.of<int64_t>(2)) return false;
    if (window < 0 || sinks < 0 || local < 0) return false;
    call.chunks.sets = scores.size(1);
    if (scores.size(0) != call.blocks.count || call.chunks.sets < 1 || scores.size(2) != call.chunks.count) return false;
    call.scores = scores.data<float>(), call.offsets = offsets.data<int64_t>(), call.entries = out.data<int64_t>();
    call.window = window, call.sinks = sinks, call.local = local;
    if (call.offsets[0] != 0 || out.size(0) != call.chunks.sets || out.size(1) != call.offsets[call.blocks.count]) return false;
    if (!call.sound()) return false;
    const Unlocked unlocked;
    best_keys(call);
    return true;
}

}  // namespace

HAVERSACK_BIND(chunks) {
    const auto any = [] { return nb::arg().none(); };
    module.def("score_chunks", &score, any(), any(), nb::arg(), nb::arg(), any(), any(), any(), nb::arg(), any());
    module.def("best_keys", &best, any(), any(), nb::arg(), any(), nb::arg(), nb::arg(), nb::arg(), any(), any());
}
