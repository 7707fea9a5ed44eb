// Attention in two passes. Work is dealt out in tiles: a few queries times the query heads that share one key head.
//
// What fixes the bits of one query's result, whatever the tile:
//   score     one chain of fma over the head's numbers in order, times scale (times the key's own scale)
//   largest   exact
//   total     vector k of 16 ranks goes to accumulator k % 4, then one fixed tree; ranks count visible entries only
//   result    for each number of the head one chain of fma over the ranks in order, divided by the total
//
// A tile computes scores of 16 keys at a time from keys that were transposed once for all its rows; entries that a query does
// not see may be computed, never used. Sums over values run over the range that all queries of the tile see with several
// rows at a time, and over what is left at both ends query by query.
#include "attend.h"

#include "base/pool.h"
#include "base/scratch.h"
#include "rows.h"
#include "simd/functions.h"
#include "simd/transpose.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

#if defined(__AVX512F__)
constexpr int score_rows = 8, score_blocks = 2, sum_rows = 4, sum_vectors = 4;
#else
constexpr int score_rows = 4, score_blocks = 1, sum_rows = 2, sum_vectors = 2;
#endif
constexpr int alone_blocks = 4;           // of keys for a single row, whose one chain would wait for itself
constexpr int alone_vectors = 4;          // of values, likewise
constexpr int64_t most_rows = 64;         // of a tile
constexpr int64_t most_scores = 1 << 18;  // of a tile, as long as it has more than one query
constexpr int64_t chunk_floats = 4096;    // of keys or values that all rows of a tile use in turn: half the nearest cache
constexpr int64_t least_work = 1 << 17;   // multiplications that are worth handing to a thread

int64_t sixteenfold(int64_t n) { return (n + lanes - 1) / lanes * lanes; }

struct Tile {
    int64_t token, tokens;   // queries
    int64_t kv_head, head;   // first query head
    int64_t heads;           // query heads a query has in this tile
    int64_t low, high;       // cache entries that any of its queries sees lie in low .. high - 1
    int64_t stride;          // of scores
    float *scores;           // [rows, stride]: entry e of a row at e - low; later weights, by rank from the first visible on
    float *sums;             // [rows, padded width]
    float *totals;           // [rows]
    float *chunk, *factors;  // chunk of keys (transposed) or values; what scores of its keys are multiplied by
    const float *q[most_rows];

    int64_t rows() const { return tokens * heads; }
};

// ---- what queries see ------------------------------------------------------------------------------------------------------

int64_t first_seen(const Attention &call, int64_t token) {
    const int64_t first = call.start ? call.start[token] : 0;
    return first < 0 ? 0 : first;
}

// Entries first_seen .. here - 1 are seen without asking the mask.
int64_t plain_end(const Attention &call, int64_t token) {
    const int64_t end = call.mask ? call.length : call.length + token + 1, first = first_seen(call, token);
    return end < first ? first : end;
}

// Calls each(begin, end) for runs of new entries that the mask shows, ascending.
template <typename Each>
HAVERSACK_INLINE void masked_runs(const Attention &call, int64_t token, const Each &each) {
    if (!call.mask) return;
    const uint8_t *mask = call.mask + token * call.fresh;
    const int64_t first = first_seen(call, token) - call.length;
    for (int64_t j = first > 0 ? first : 0; j < call.fresh;) {
        if (!mask[j]) {
            ++j;
            continue;
        }
        const int64_t begin = j;
        while (j < call.fresh && mask[j]) ++j;
        each(call.length + begin, call.length + j);
    }
}

// ---- scores ----------------------------------------------------------------------------------------------------------------

template <CacheKind kind>
HAVERSACK_INLINE Floats load_entry(const char *row, int64_t i, int64_t n) {
    if constexpr (kind == CacheKind::f32) return load_n(reinterpret_cast<const float *>(row) + i, n);
    if constexpr (kind == CacheKind::f16) return n == lanes ? load_f16(row + 2 * i) : load_f16_part(row + 2 * i, n);
    return n == lanes ? load_i8(row + i) : load_i8_part(row + i, n);
}

// Entries first .. first + 15 (those below end; the others count as 0), transposed: to[d * 16 + key].
template <CacheKind kind>
void transposed_keys(const char *keys, int64_t entry_bytes, int64_t first, int64_t end, int64_t width, float *to) {
    const int64_t here = end - first < lanes ? end - first : lanes;
    sixteens(width, [&](int64_t d, int64_t n) {
        Floats rows[lanes];
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i)
            rows[i] = i < here ? load_entry<kind>(keys + (first + i) * entry_bytes, d, n) : zero();
        transpose(rows);
        for (int64_t i = 0; i < n; ++i) store(to + (d + i) * lanes, rows[i]);
    });
}

// `ahead`: memory of which each step over the head's numbers fetches `ahead_step` bytes, while arithmetic goes on.
template <int R, int B>
HAVERSACK_INLINE void score_block(const float *const *q, const float *keys, int64_t width, const float *factors,
                                  float *scores, int64_t stride, const char *ahead, int64_t ahead_step) {
    Floats sums[R][B];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int b = 0; b < B; ++b) sums[r][b] = zero();
    for (int64_t d = 0; d < width; ++d) {
        Floats key[B];
#pragma GCC unroll 16
        for (int b = 0; b < B; ++b) key[b] = load(keys + (b * width + d) * lanes);
        for (int64_t at = 0; at < ahead_step; at += 64) __builtin_prefetch(ahead + d * ahead_step + at);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Floats x = set(q[r][d]);
#pragma GCC unroll 16
            for (int b = 0; b < B; ++b) sums[r][b] = fma(x, key[b], sums[r][b]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int b = 0; b < B; ++b) store(scores + r * stride + b * lanes, sums[r][b] * load(factors + b * lanes));
}

template <int R, int B>
HAVERSACK_INLINE void score_rows_of(const Tile &tile, int64_t row, int64_t blocks, int64_t width, float *scores,
                                    const char *ahead, int64_t entry_bytes) {
    const int64_t step = row == 0 ? entry_bytes * lanes / width : 0;  // bytes of a block for each of a head's numbers
    int64_t b = 0;
    const auto at = [&](int64_t block) { return tile.chunk + block * width * lanes; };
    const auto next = [&](int64_t block) { return ahead + block * lanes * entry_bytes; };
    for (; b + B <= blocks; b += B)
        score_block<R, B>(tile.q + row, at(b), width, tile.factors + b * lanes, scores + b * lanes, tile.stride, next(b), B * step);
    for (; b < blocks; ++b)
        score_block<R, 1>(tile.q + row, at(b), width, tile.factors + b * lanes, scores + b * lanes, tile.stride, next(b), step);
}

template <CacheKind kind>
void score(const Cache &cache, const Attention &call, const Tile &tile) {
    const int64_t width = cache.width, entry_bytes = cache.entry_bytes();
    const char *keys = static_cast<const char *>(cache.keys) + tile.kv_head * cache.capacity * entry_bytes;
    const int64_t most = chunk_floats / (width * lanes) > score_blocks ? chunk_floats / (width * lanes) : score_blocks;
    for (int64_t entry = tile.low; entry < tile.high; entry += most * lanes) {
        const int64_t left = (tile.high - entry + lanes - 1) / lanes, blocks = left < most ? left : most;
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t first = entry + b * lanes;
            transposed_keys<kind>(keys, entry_bytes, first, tile.high, width, tile.chunk + b * width * lanes);
            Floats factor = set(call.scale);
            if (kind == CacheKind::int8) {
                const int64_t n = tile.high - first < lanes ? tile.high - first : lanes;
                factor = factor * load_n(cache.key_scales + tile.kv_head * cache.capacity + first, n);
            }
            store(tile.factors + b * lanes, factor);
        }
        float *scores = tile.scores + (entry - tile.low);
        const char *ahead = keys + (entry + most * lanes) * entry_bytes;
        int64_t row = 0;
        for (; row + score_rows <= tile.rows(); row += score_rows)
            score_rows_of<score_rows, score_blocks>(tile, row, blocks, width, scores + row * tile.stride, ahead, entry_bytes);
        for (; row + 4 <= tile.rows(); row += 4)
            score_rows_of<4, score_blocks>(tile, row, blocks, width, scores + row * tile.stride, ahead, entry_bytes);
        for (; row < tile.rows(); ++row)
            score_rows_of<1, alone_blocks>(tile, row, blocks, width, scores + row * tile.stride, ahead, entry_bytes);
    }
}

// ---- scores to weights -----------------------------------------------------------------------------------------------------

// scores[count] -> e^(score - largest), zeros behind them up to a full vector; returns their total.
float weigh(float *scores, int64_t count, float softcap) {
    const float infinity = __builtin_inff();
    Floats fill = set(-infinity);
    float tail[lanes];
    store(tail, fill);
    const int64_t whole = count / lanes * lanes, padded = sixteenfold(count);
    if (whole < count) {
        std::memcpy(tail, scores + whole, static_cast<size_t>(count - whole) * sizeof(float));
        store(scores + whole, load(tail));
    }
    Floats top = fill;
    if (softcap != 0.0f) {
        const Floats cap = set(softcap);
        for (int64_t i = 0; i < padded; i += lanes) store(scores + i, cap * tanh(load(scores + i) / cap));
        if (whole < count) {  // the cap has made numbers of the filling
            store(tail, fill);
            std::memcpy(tail, scores + whole, static_cast<size_t>(count - whole) * sizeof(float));
            store(scores + whole, load(tail));
        }
    }
    for (int64_t i = 0; i < padded; i += lanes) top = max(top, load(scores + i));
    top = set(largest(top));
    return fixed_sum(padded, [&](int64_t i, int64_t) {
        const Floats power = exp(load(scores + i) - top);
        store(scores + i, power);
        return power;
    });
}

void weigh_rows(const Cache &cache, const Attention &call, const Tile &tile) {
    const float *value_scales = cache.value_scales + tile.kv_head * cache.capacity;
    for (int64_t row = 0; row < tile.rows(); ++row) {
        const int64_t token = tile.token + row / tile.heads, first = first_seen(call, token);
        float *weights = tile.scores + row * tile.stride + (first - tile.low);
        int64_t count = plain_end(call, token) - first;
        masked_runs(call, token, [&](int64_t begin, int64_t end) {
            std::memmove(weights + count, weights + (begin - first), static_cast<size_t>(end - begin) * sizeof(float));
            count += end - begin;
        });
        tile.totals[row] = count ? weigh(weights, count, call.softcap) : 0.0f;
        if (cache.kind != CacheKind::int8) continue;
        const auto scaled = [&](float *at, int64_t begin, int64_t end) {
            sixteens(end - begin, [&](int64_t i, int64_t n) {
                store_n(at + i, load_n(at + i, n) * load_n(value_scales + begin + i, n), n);
            });
        };
        scaled(weights, first, plain_end(call, token));
        int64_t rank = plain_end(call, token) - first;
        masked_runs(call, token, [&](int64_t begin, int64_t end) {
            scaled(weights + rank, begin, end);
            rank += end - begin;
        });
    }
}

// ---- weighted sums of values -----------------------------------------------------------------------------------------------

template <int R, int V>
HAVERSACK_INLINE void sum_block(const float *weights, int64_t weights_stride, const float *values, int64_t values_stride,
                                int64_t count, float *sums, int64_t sums_stride, const char *ahead, int64_t ahead_step) {
    Floats acc[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) acc[r][v] = load(sums + r * sums_stride + v * lanes);
    for (int64_t k = 0; k < count; ++k) {
        Floats value[V];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) value[v] = load(values + k * values_stride + v * lanes);
        for (int64_t at = 0; at < ahead_step; at += 64) __builtin_prefetch(ahead + k * ahead_step + at);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Floats x = set(weights[r * weights_stride + k]);
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) acc[r][v] = fma(x, value[v], acc[r][v]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) store(sums + r * sums_stride + v * lanes, acc[r][v]);
}

template <int R, int V>
HAVERSACK_INLINE void sum_rows_of(const float *weights, int64_t weights_stride, const float *values, int64_t count,
                                  int64_t padded, float *sums, const char *ahead, int64_t ahead_step) {
    int64_t d = 0;
    for (; d + V * lanes <= padded; d += V * lanes)
        sum_block<R, V>(weights, weights_stride, values + d, padded, count, sums + d, padded, ahead,
                        d ? 0 : ahead_step);
    for (; d < padded; d += lanes)
        sum_block<R, 1>(weights, weights_stride, values + d, padded, count, sums + d, padded, ahead, d ? 0 : ahead_step);
}

// sums[rows, padded] += weights[rows, entries] times the values of entries begin .. end - 1.
template <CacheKind kind>
void add_values(const Cache &cache, const Tile &tile, int64_t begin, int64_t end, const float *weights, int64_t rows,
                float *sums) {
    const int64_t width = cache.width, padded = sixteenfold(width), entry_bytes = cache.entry_bytes();
    const char *stored = static_cast<const char *>(cache.values) + tile.kv_head * cache.capacity * entry_bytes;
    const int64_t most = chunk_floats / padded > lanes ? chunk_floats / padded : lanes;
    for (int64_t entry = begin; entry < end; entry += most) {
        const int64_t count = end - entry < most ? end - entry : most;
        const float *values = reinterpret_cast<const float *>(stored + entry * entry_bytes);
        if (kind != CacheKind::f32 || padded != width) {
            for (int64_t k = 0; k < count; ++k)
                sixteens(width, [&](int64_t d, int64_t n) {
                    store(tile.chunk + k * padded + d, load_entry<kind>(stored + (entry + k) * entry_bytes, d, n));
                });
            values = tile.chunk;
        }
        const float *at = weights + (entry - begin);
        const char *ahead = stored + (entry + count) * entry_bytes;
        int64_t row = 0;
        for (; row + sum_rows <= rows; row += sum_rows)
            sum_rows_of<sum_rows, sum_vectors>(at + row * tile.stride, tile.stride, values, count, padded, sums + row * padded,
                                               ahead, row ? 0 : entry_bytes);
        for (; row < rows; ++row)
            sum_rows_of<1, alone_vectors>(at + row * tile.stride, tile.stride, values, count, padded, sums + row * padded, ahead,
                                          row ? 0 : entry_bytes);
    }
}

template <CacheKind kind>
void sum_values(const Cache &cache, const Attention &call, const Tile &tile) {
    const int64_t padded = sixteenfold(cache.width);
    std::memset(tile.sums, 0, static_cast<size_t>(tile.rows() * padded) * sizeof(float));
    int64_t common = 0, common_end = INT64_MAX;
    for (int64_t t = tile.token; t < tile.token + tile.tokens; ++t) {
        common = larger_of(common, first_seen(call, t));
        common_end = smaller_of(common_end, plain_end(call, t));
    }
    if (common_end < common) common_end = common;
    const auto weights_of = [&](int64_t row, int64_t entry) { return tile.scores + row * tile.stride + (entry - tile.low); };
    for (int64_t t = 0; t < tile.tokens; ++t) {
        const int64_t first = first_seen(call, tile.token + t), end = plain_end(call, tile.token + t), row = t * tile.heads;
        add_values<kind>(cache, tile, first, smaller_of(common, end), weights_of(row, first), tile.heads,
                         tile.sums + row * padded);
    }
    add_values<kind>(cache, tile, common, common_end, weights_of(0, common), tile.rows(), tile.sums);
    for (int64_t t = 0; t < tile.tokens; ++t) {
        const int64_t token = tile.token + t, first = first_seen(call, token), end = plain_end(call, token), row = t * tile.heads;
        const int64_t rest = smaller_of(larger_of(common_end, first), end);
        add_values<kind>(cache, tile, rest, end, weights_of(row, rest), tile.heads, tile.sums + row * padded);
        int64_t rank = end;
        masked_runs(call, token, [&](int64_t begin, int64_t stop) {
            add_values<kind>(cache, tile, begin, stop, weights_of(row, rank), tile.heads, tile.sums + row * padded);
            rank += stop - begin;
        });
    }
}

// ---- the call --------------------------------------------------------------------------------------------------------------

template <CacheKind kind>
void attend_tile(const Cache &cache, const Attention &call, Tile &tile) {
    const int64_t width = cache.width, padded = sixteenfold(width);
    tile.low = INT64_MAX;
    for (int64_t t = 0; t < tile.tokens; ++t) tile.low = smaller_of(tile.low, first_seen(call, tile.token + t));
    tile.high = call.mask ? call.length + call.fresh : call.length + tile.token + tile.tokens;
    tile.low = smaller_of(tile.low, tile.high);
    const int64_t rows = tile.rows(), chunk = larger_of(chunk_floats, larger_of(padded, width) * lanes * score_blocks);
    tile.stride = sixteenfold(tile.high - tile.low) + 2 * lanes;
    float *memory = static_cast<float *>(scratch(
        2, static_cast<size_t>(rows * (tile.stride + padded) + sixteenfold(rows) + chunk + chunk / width + lanes) * sizeof(float)));
    tile.chunk = memory;
    tile.scores = tile.chunk + chunk;
    tile.sums = tile.scores + rows * tile.stride;
    tile.totals = tile.sums + rows * padded;
    tile.factors = tile.totals + sixteenfold(rows);
    for (int64_t row = 0; row < rows; ++row)
        tile.q[row] = call.q + ((tile.token + row / tile.heads) * call.heads + tile.head + row % tile.heads) * width;
    score<kind>(cache, call, tile);
    weigh_rows(cache, call, tile);
    sum_values<kind>(cache, call, tile);
    for (int64_t row = 0; row < rows; ++row) {
        float *out = call.out + (tile.q[row] - call.q);
        const float *sums = tile.sums + row * padded;
        const Floats total = set(tile.totals[row]);
        if (tile.totals[row] == 0.0f) std::memset(out, 0, static_cast<size_t>(width) * sizeof(float));
        else sixteens(width, [&](int64_t i, int64_t n) { store_n(out + i, load(sums + i) / total, n); });
    }
}

void attention(const Cache &cache, const Attention &call) {
    const int64_t group = call.heads / cache.kv_heads, seen = call.length + call.fresh + lanes;
    int64_t tokens = larger_of<int64_t>(1, smaller_of(most_rows / group, most_scores / (group * seen)));
    if (tokens > call.n) tokens = call.n;
    const int64_t tiles = (call.n + tokens - 1) / tokens;
    // Splitting the heads that share keys reads the keys again, but may give every thread as much to do.
    int64_t splits = 0;
    double least = 0;
    for (int64_t s = (group + most_rows - 1) / most_rows; s <= group; ++s) {
        const int64_t items = tiles * cache.kv_heads * s, rounds = (items + threads() - 1) / threads();
        const double cost = static_cast<double>(rounds) * static_cast<double>((group + s - 1) / s * tokens + 2);
        if (splits == 0 || cost < least) splits = s, least = cost;
    }
    const int64_t heads = (group + splits - 1) / splits;
    splits = (group + heads - 1) / heads;
    const int64_t items = tiles * cache.kv_heads * splits;
    const int64_t work = 1 + call.n * call.heads * seen * cache.width / items;
    parallel(items, 1 + least_work / work, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
            Tile tile;
            tile.token = (tiles - 1 - item / (cache.kv_heads * splits)) * tokens;  // later queries see more: they go first
            tile.tokens = smaller_of(tokens, call.n - tile.token);
            tile.kv_head = item / splits % cache.kv_heads;
            const int64_t first = item % splits * heads;
            tile.head = tile.kv_head * group + first;
            tile.heads = smaller_of(heads, group - first);
            switch (cache.kind) {
                case CacheKind::f32: attend_tile<CacheKind::f32>(cache, call, tile); break;
                case CacheKind::f16: attend_tile<CacheKind::f16>(cache, call, tile); break;
                case CacheKind::int8: attend_tile<CacheKind::int8>(cache, call, tile); break;
            }
        }
    });
}

}  // namespace

HAVERSACK_TABLE(AttendKernels, attend) = {attention};

}  // namespace haversack::HAVERSACK_TARGET
