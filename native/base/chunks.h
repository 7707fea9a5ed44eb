// Chunks of keys: their scores under blocks of queries, and the keys that the best of them give: see kernels/chunks.py.
// Compiled once, and free of fused operations: a choice of keys is the same on every processor.
#pragma once
#include <cstdint>

namespace haversack {

enum class Pooling : int32_t { root, mean, largest };

// Block b holds the queries bounds[b] .. bounds[b + 1] - 1, which are the entries start + bounds[b] and on; chunk c the entries
// borders[c] .. borders[c + 1] - 1.
struct Blocks {
    const int64_t *bounds;  // [count + 1]
    int64_t count, start;
};
struct Chunks {
    const int64_t *borders;  // [count + 1]
    int64_t count, sets;     // one set for all key heads, or one for each
};

struct ChunkScores {
    Blocks blocks;
    Chunks chunks;
    const float *q;  // [queries, heads, width]
    int64_t heads, width;
    const float *keys;  // [key_heads, fresh, width]: entries done, done + 1, ...
    int64_t key_heads, fresh, done;
    Pooling pooling;
    float *sums;    // [sets, chunks, width] of the entries before `done`; afterwards of those before the last block's end
    float *scores;  // [blocks, sets, chunks]; -infinity for chunks that begin at a block's end or behind it
};
void score_chunks(const ChunkScores &call);

struct BestKeys {
    Blocks blocks;
    Chunks chunks;
    const float *scores;           // [blocks, sets, chunks]
    int64_t window, sinks, local;  // window 0: none
    const int64_t *offsets;        // [blocks + 1]: of a block's entries; it takes offsets[b + 1] - offsets[b] of them
    int64_t *entries;              // [sets, offsets[blocks]]
    bool sound() const;            // whether every block can take as many as `offsets` says
};
void best_keys(const BestKeys &call);

}  // namespace haversack
