// See chosen.h. A piece of work is a block and a key head; its bits are those of a call of `attention` over the same entries.
#include "base/chosen.h"

#include <algorithm>
#include <cstring>

#include "base/pool.h"
#include "base/scratch.h"

namespace haversack {
namespace {

size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

// The entries `from[0 .. count - 1]` of a key head, and behind them `more` entries from `own` on.
void gather(const char *stored, int64_t size, const int64_t *from, int64_t count, int64_t own, int64_t more, char *to) {
    for (int64_t i = 0; i < count;) {
        int64_t run = 1;
        while (i + run < count && from[i + run] == from[i] + run) ++run;
        std::memcpy(to + i * size, stored + from[i] * size, static_cast<size_t>(run * size));
        i += run;
    }
    std::memcpy(to + count * size, stored + own * size, static_cast<size_t>(more * size));
}

void attend_piece(const Cache &cache, const Attention &call, const Chosen &chosen, int64_t block, int64_t kv_head) {
    const int64_t first = chosen.bounds[block], n = chosen.bounds[block + 1] - first, own = chosen.length + first;
    const int64_t count = chosen.offsets[block + 1] - chosen.offsets[block], seen = count + n;
    const int64_t set = chosen.sets == 1 ? 0 : kv_head;
    const int64_t *entries = chosen.entries + set * chosen.offsets[chosen.blocks] + chosen.offsets[block];
    const int64_t group = call.heads / cache.kv_heads, width = cache.width, size = cache.entry_bytes();
    const bool scaled = cache.kind == CacheKind::int8;
    const size_t part = rounded(static_cast<size_t>(seen * size)), scales = rounded(static_cast<size_t>(seen) * sizeof(float)),
                 rows = rounded(static_cast<size_t>(n * group * width) * sizeof(float));
    char *memory =
        static_cast<char *>(scratch(3, 2 * part + 2 * scales + 2 * rows + rounded(static_cast<size_t>(n) * sizeof(int64_t))));
    char *keys = memory, *values = keys + part, *key_scales = values + part, *value_scales = key_scales + scales;
    float *q = reinterpret_cast<float *>(value_scales + scales), *out = q + rows / sizeof(float);
    int64_t *start = reinterpret_cast<int64_t *>(out + rows / sizeof(float));

    const int64_t head_entry = kv_head * cache.capacity, head = kv_head * group;
    gather(static_cast<const char *>(cache.keys) + head_entry * size, size, entries, count, own, n, keys);
    gather(static_cast<const char *>(cache.values) + head_entry * size, size, entries, count, own, n, values);
    if (scaled) {
        constexpr int64_t one = sizeof(float);
        gather(reinterpret_cast<const char *>(cache.key_scales + head_entry), one, entries, count, own, n, key_scales);
        gather(reinterpret_cast<const char *>(cache.value_scales + head_entry), one, entries, count, own, n, value_scales);
    }
    const size_t group_bytes = static_cast<size_t>(group * width) * sizeof(float);
    for (int64_t i = 0; i < n; ++i)
        std::memcpy(q + i * group * width, call.q + ((first + i) * call.heads + head) * width, group_bytes);
    if (call.start)
        for (int64_t i = 0; i < n; ++i) {
            const int64_t from = call.start[first + i];
            start[i] = from > own ? count + (from - own) : std::lower_bound(entries, entries + count, from) - entries;
        }
    const Cache near = {keys,
                        values,
                        scaled ? reinterpret_cast<float *>(key_scales) : nullptr,
                        scaled ? reinterpret_cast<float *>(value_scales) : nullptr,
                        1,
                        seen,
                        width,
                        cache.kind};
    attend().attention(near, {q, out, n, group, count, n, call.start ? start : nullptr, nullptr, call.scale, call.softcap});
    for (int64_t i = 0; i < n; ++i)
        std::memcpy(call.out + ((first + i) * call.heads + head) * width, out + i * group * width, group_bytes);
}

}  // namespace

void attend_chosen(const Cache &cache, const Attention &call, const Chosen &chosen) {
    const int64_t pieces = chosen.blocks * cache.kv_heads;
    const auto run = [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) attend_piece(cache, call, chosen, i / cache.kv_heads, i % cache.kv_heads);
    };
    // Fewer pieces than keep every thread busy take all threads in turn.
    if (pieces % threads() == 0 || pieces >= 4 * threads())
        parallel(pieces, 1, run);
    else
        run(0, pieces);
}

}  // namespace haversack
