// Rows of one call that belong to different caches of one allocation: see kernels/pooled.py.
#pragma once
#include "attend.h"
#include "cache.h"

namespace haversack {

// `rows` rows of the call, from `row` on, that are the entries `entry` and on of the cache in `slot`.
struct Run {
    int64_t row, rows, slot, entry;
};

struct Runs {
    Cache whole;  // of slot 0; the others follow
    const Run *list;
    int64_t count;

    Cache cache(int64_t slot) const {
        Cache one = whole;
        const int64_t entries = slot * whole.kv_heads * whole.capacity;
        one.keys = static_cast<char *>(whole.keys) + entries * whole.entry_bytes();
        one.values = static_cast<char *>(whole.values) + entries * whole.entry_bytes();
        if (whole.kind == CacheKind::int8) one.key_scales += entries, one.value_scales += entries;
        return one;
    }
};

// What `call` and `entries` say of all rows, for each run in its own cache: its bits are those of a call with that run alone.
// Of `call`, length, fresh and mask are not used. Runs of one row (texts that are being decoded) are dealt out to the threads;
// longer ones (prompts that are being read) take all threads in turn.
void attend_runs(const Runs &runs, const Attention &call);
void write_runs(const Runs &runs, const NewEntries &entries);

}  // namespace haversack
