// Attention in two passes. Work is dealt out in tiles: a few queries times the query heads that share one key head.
//
// What fixes the bits of one query's result, whatever the tile:
//   score     one chain of fma over the head's numbers in order, times scale (times the key's own scale), plus its bias
//   largest   exact
//   total     vector k of 16 ranks goes to accumulator k % 4, then one fixed tree; ranks count visible entries only
//   result    for each number of the head one chain of fma over the ranks in order, divided by the total
//
// A tile computes scores of 16 keys at a time from keys that were transposed once for all its rows; entries that a query does
// not see may be computed, never used. Sums over values run over the range that all queries of the tile see with several
// rows at a time, and over what is left at both ends query by query.
#include "attend.h"

#include <type_traits>

#include "base/pool.h"
#include "base/scratch.h"
#include "rows.h"
#include "simd/functions.h"
#include "simd/transpose.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

// Rows that are computed together, and for one to four of them and for more: blocks of 16 keys, vectors of a value.
#if defined(__AVX512F__)
constexpr int most_together = 8, few_blocks = 4, many_blocks = 2, few_vectors = 4, many_vectors = 2;
#else
constexpr int most_together = 4, few_blocks = 2, many_blocks = 1, few_vectors = 2, many_vectors = 1;
#endif
constexpr int64_t most_rows = 64;         // of a tile
constexpr int64_t most_scores = 1 << 18;  // of a tile, as long as it has more than one query
constexpr int64_t chunk_floats = 4096;    // of keys or values that all rows of a tile use in turn: half the nearest cache
constexpr int64_t least_work = 1 << 17;   // multiplications that are worth handing to a thread

template <int N>
using Constant = std::integral_constant<int, N>;

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
    float *queries;          // [rows, width], those that are computed together interleaved: number d of row r of R at d * R + r

    int64_t rows() const { return tokens * heads; }
    int64_t place(const Attention &call, int64_t row) const {  // of a row among the call's queries and results
        return (token + row / heads) * call.heads + head + row % heads;
    }
};

// Calls each(row, R) for rows in parts of R = most_together, and what is left as one part.
template <int R, typename Each>
HAVERSACK_INLINE void last_together(int64_t row, int64_t left, const Each &each) {
    if constexpr (R > 0) {
        if (left == R) return each(row, Constant<R>{});
        last_together<R - 1>(row, left, each);
    }
}
template <typename Each>
HAVERSACK_INLINE void rows_together(int64_t rows, const Each &each) {
    int64_t row = 0;
    for (; row + most_together <= rows; row += most_together) each(row, Constant<most_together>{});
    last_together<most_together - 1>(row, rows - row, each);
}

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
HAVERSACK_INLINE void score_block(const float *q, const float *keys, int64_t width, const float *factors, float *scores,
                                  int64_t stride, const char *ahead, int64_t ahead_step) {
    Floats sums[R][B];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int b = 0; b < B; ++b) sums[r][b] = zero();
    for (int64_t d = 0; d < width; ++d, q += R) {
        Floats key[B];
#pragma GCC unroll 16
        for (int b = 0; b < B; ++b) key[b] = load(keys + (b * width + d) * lanes);
        for (int64_t at = 0; at < ahead_step; at += 64) __builtin_prefetch(ahead + d * ahead_step + at);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Floats x = set(q[r]);
#pragma GCC unroll 16
            for (int b = 0; b < B; ++b) sums[r][b] = fma(x, key[b], sums[r][b]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int b = 0; b < B; ++b) store(scores + r * stride + b * lanes, sums[r][b] * load(factors + b * lanes));
}

// `ahead`: memory of which each step over the head's numbers fetches a part, while arithmetic goes on.
template <int R>
void score_rows(const Tile &tile, int64_t row, int64_t blocks, int64_t width, float *scores, const char *ahead,
                int64_t entry_bytes) {
    constexpr int B = R <= most_together / 2 ? few_blocks : many_blocks;
    const int64_t step = row == 0 ? entry_bytes * lanes / width : 0;  // bytes of a block for each of a head's numbers
    const float *q = tile.queries + row * width;
    int64_t b = 0;
    const auto at = [&](int64_t block) { return tile.chunk + block * width * lanes; };
    const auto next = [&](int64_t block) { return ahead + block * lanes * entry_bytes; };
    for (; b + B <= blocks; b += B)
        score_block<R, B>(q, at(b), width, tile.factors + b * lanes, scores + b * lanes, tile.stride, next(b), B * step);
    for (; b < blocks; ++b)
        score_block<R, 1>(q, at(b), width, tile.factors + b * lanes, scores + b * lanes, tile.stride, next(b), step);
}

template <CacheKind kind>
void score(const Cache &cache, const Attention &call, const Tile &tile) {
    const int64_t width = cache.width, entry_bytes = cache.entry_bytes();
    const char *keys = static_cast<const char *>(cache.keys) + tile.kv_head * cache.capacity * entry_bytes;
    const int64_t most = larger_of<int64_t>(chunk_floats / (width * lanes), many_blocks);
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
        rows_together(tile.rows(), [&](int64_t row, auto together) {
            score_rows<decltype(together)::value>(tile, row, blocks, width, scores + row * tile.stride, ahead, entry_bytes);
        });
    }
}

// ---- scores to weights -----------------------------------------------------------------------------------------------------

// scores[end - first], of the entries from `first` on: plus the bias of their distances from the query's place.
void add_bias(const Attention &call, int64_t token, int64_t head, float *scores, int64_t first, int64_t end) {
    const int64_t reach = call.reach, place = call.places[token];
    const float *table = call.bias + head * (2 * reach + 1);
    const auto within = [&](int64_t entry) { return smaller_of(larger_of(entry, first), end); };
    const int64_t near = within(place - reach), far = within(place + reach);
    for (int64_t e = first; e < near; ++e) scores[e - first] += table[0];
    for (int64_t e = near; e < far; ++e) scores[e - first] += table[e - place + reach];
    for (int64_t e = far; e < end; ++e) scores[e - first] += table[2 * reach];
}

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
        const Floats power = exp_below(load(scores + i) - top);
        store(scores + i, power);
        return power;
    });
}

void weigh_rows(const Cache &cache, const Attention &call, const Tile &tile) {
    const float *value_scales = cache.value_scales + tile.kv_head * cache.capacity;
    for (int64_t row = 0; row < tile.rows(); ++row) {
        const int64_t token = tile.token + row / tile.heads, first = first_seen(call, token);
        float *weights = tile.scores + row * tile.stride + (first - tile.low);
        if (call.bias) add_bias(call, token, tile.head + row % tile.heads, weights, first, tile.high);
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

// sums[R, V vectors] += weights[R, count] times values; `values` are numbers as stored, `values_stride` bytes apart.
template <CacheKind kind, int R, int V, bool fetch>
HAVERSACK_INLINE void sum_block(const float *weights, int64_t weights_stride, const char *values, int64_t values_stride,
                                int64_t count, int64_t last, float *sums, int64_t sums_stride, int64_t ahead) {
    Floats acc[R][V];
    const auto at = [&](int r, int v) { return sums + r * sums_stride + v * lanes; };
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) acc[r][v] = load(at(r, v));
    for (int64_t k = 0; k < count; ++k, values += values_stride) {
        Floats value[V];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) value[v] = load_entry<kind>(values, v * lanes, v == V - 1 ? last : lanes);
        if constexpr (fetch)
            for (int64_t line = 0; line < values_stride; line += 64) __builtin_prefetch(values + ahead + line);
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
        for (int v = 0; v < V; ++v) store(at(r, v), acc[r][v]);
}

// The same over the whole width of R rows. `fetch`: the entries `ahead` bytes further on are wanted next.
template <CacheKind kind, int R>
void sum_rows(const float *weights, int64_t weights_stride, const char *values, int64_t values_stride, int64_t count,
              int64_t width, float *sums, int64_t ahead, bool fetch) {
    constexpr int V = R <= most_together / 2 ? few_vectors : many_vectors;
    constexpr int64_t number = kind == CacheKind::f32 ? 4 : kind == CacheKind::f16 ? 2 : 1;
    const int64_t padded = sixteenfold(width);
    int64_t d = 0;
    for (; d + V * lanes <= width; d += V * lanes) {
        if (fetch && d == 0)
            sum_block<kind, R, V, true>(weights, weights_stride, values, values_stride, count, lanes, sums, padded, ahead);
        else
            sum_block<kind, R, V, false>(weights, weights_stride, values + d * number, values_stride, count, lanes, sums + d,
                                         padded, ahead);
    }
    for (; d < width; d += lanes)
        sum_block<kind, R, 1, false>(weights, weights_stride, values + d * number, values_stride, count,
                                     smaller_of<int64_t>(width - d, lanes), sums + d, padded, ahead);
}

// sums[rows, padded] += weights[rows, entries] times the values of entries begin .. end - 1. Few rows take values as they are
// stored; for more of them a chunk is made floats once.
template <CacheKind kind>
void add_values(const Cache &cache, const Tile &tile, int64_t begin, int64_t end, const float *weights, int64_t rows,
                float *sums) {
    const int64_t width = cache.width, padded = sixteenfold(width), entry_bytes = cache.entry_bytes();
    const char *stored = static_cast<const char *>(cache.values) + tile.kv_head * cache.capacity * entry_bytes;
    const int64_t most = larger_of<int64_t>(chunk_floats / padded, lanes);
    const bool direct = kind == CacheKind::f32 || rows <= most_together;
    for (int64_t entry = begin; entry < end; entry += most) {
        const int64_t count = end - entry < most ? end - entry : most;
        const char *values = stored + entry * entry_bytes;
        const float *at = weights + (entry - begin);
        if (!direct)
            for (int64_t k = 0; k < count; ++k) {
                __builtin_prefetch(values + (k + most) * entry_bytes);
                sixteens(width, [&](int64_t d, int64_t n) {
                    store(tile.chunk + k * padded + d, load_entry<kind>(values + k * entry_bytes, d, n));
                });
            }
        rows_together(rows, [&](int64_t row, auto together) {
            constexpr int R = decltype(together)::value;
            const float *of_row = at + row * tile.stride;
            if (direct)
                sum_rows<kind, R>(of_row, tile.stride, values, entry_bytes, count, width, sums + row * padded,
                                  most * entry_bytes, row == 0);
            else
                sum_rows<CacheKind::f32, R>(of_row, tile.stride, reinterpret_cast<const char *>(tile.chunk), padded * 4, count,
                                            padded, sums + row * padded, 0, false);
        });
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
        const int64_t token = tile.token + t, first = first_seen(call, token), end = plain_end(call, token),
                      row = t * tile.heads;
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
    const int64_t rows = tile.rows(), chunk = larger_of(chunk_floats, padded * lanes * many_blocks);
    tile.stride = sixteenfold(tile.high - tile.low) + 2 * lanes;
    float *memory =
        static_cast<float *>(scratch(2, static_cast<size_t>(rows * (tile.stride + padded) + sixteenfold(rows) +
                                                            sixteenfold(rows * width) + chunk + chunk / width + lanes) *
                                            sizeof(float)));
    tile.chunk = memory;
    tile.scores = tile.chunk + chunk;
    tile.sums = tile.scores + rows * tile.stride;
    tile.totals = tile.sums + rows * padded;
    tile.queries = tile.totals + sixteenfold(rows);
    tile.factors = tile.queries + sixteenfold(rows * width);
    rows_together(rows, [&](int64_t row, auto together) {
        constexpr int R = decltype(together)::value;
        for (int r = 0; r < R; ++r) {
            const float *q = call.q + tile.place(call, row + r) * width;
            for (int64_t d = 0; d < width; ++d) tile.queries[row * width + d * R + r] = q[d];
        }
    });
    score<kind>(cache, call, tile);
    weigh_rows(cache, call, tile);
    sum_values<kind>(cache, call, tile);
    for (int64_t row = 0; row < rows; ++row) {
        float *out = call.out + tile.place(call, row) * width;
        const float *sums = tile.sums + row * padded;
        const Floats total = set(tile.totals[row]);
        if (tile.totals[row] == 0.0f)
            std::memset(out, 0, static_cast<size_t>(width) * sizeof(float));
        else
            sixteens(width, [&](int64_t i, int64_t n) { store_n(out + i, load(sums + i) / total, n); });
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
