// Attention of blocks of queries, each over entries that were chosen for it: see kernels/chosen.py.
#pragma once
#include "attend.h"
#include "cache.h"

namespace haversack {

// Block b holds the queries bounds[b] .. bounds[b + 1] - 1, which are the entries length + bounds[b] and on. It sees its own
// entries up to each query, and before them entries[set][offsets[b] .. offsets[b + 1] - 1], which ascend.
struct Chosen {
    const int64_t *bounds, *offsets;  // [blocks + 1]
    int64_t blocks;
    const int64_t *entries;  // [sets, offsets[blocks]]
    int64_t sets;            // 1, or one set a key head
    int64_t length;          // entries before the call's first query
};

// Of `call`, length, fresh and mask are not used; `start` is the first entry that each query may see. The chosen keys and values
// of a block are gathered once and lie together while its queries see them: what was not chosen is never read.
void attend_chosen(const Cache &cache, const Attention &call, const Chosen &chosen);

}  // namespace haversack
