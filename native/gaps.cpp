// Sixteen gaps at a time, one a lane: keys are transposed as they are needed, and from there on every sum runs down a column
// of lanes. A gap's bits are therefore those of any other call it is in.
#include "gaps.h"

#include "base/pool.h"
#include "base/scratch.h"
#include "rows.h"
#include "simd/transpose.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

// Rows of a window, and numbers of a value, that are computed together.
#if defined(__AVX512F__)
constexpr int most_rows = 8, numbers = 2;
#elif defined(__ARM_NEON)
constexpr int most_rows = 4, numbers = 1;
#else
constexpr int most_rows = 2, numbers = 2;
#endif

struct Tile {
    int64_t first, count;   // gaps
    int64_t span, rows;     // keys of a window, and of all windows of the tile
    int64_t stride;         // of transposed numbers: rows, and room for the lanes behind them
    float *queries, *keys;  // [16, stride]: some numbers of a head, transposed
    float *values;          // [heads, 16, stride]
    float *shares;          // [heads, span, span] vectors: what row r of a window takes of key j
    float *mixed;           // [span, channels] vectors
    float *features;        // [width] vectors
};

// Numbers `at` .. `at` + n - 1 of a tile's keys, transposed: to[d * stride + row].
void transposed(const Gaps &call, const Tile &tile, int64_t at, int64_t n, float *to) {
    const int64_t numbers_of_key = (2 + call.heads) * call.channels;
    const float *from = call.parts + tile.first * numbers_of_key + at;
    for (int64_t row = 0; row < tile.stride; row += lanes) {
        Floats block[lanes];
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i)
            block[i] = row + i < tile.rows ? load_n(from + (row + i) * numbers_of_key, n) : zero();
        transpose(block);
        for (int64_t d = 0; d < n; ++d) store(to + d * tile.stride + row, block[d]);
    }
}

// Adds n numbers' part of the scores of row r and keys j .. j + J - 1 of all windows.
template <int J>
HAVERSACK_INLINE void score_keys(const Tile &tile, int64_t n, int64_t r, int64_t j, float *scores) {
    Floats one[J], two[J];
#pragma GCC unroll 8
    for (int k = 0; k < J; ++k) {
        one[k] = load(scores + (r * tile.span + j + k) * lanes);
        two[k] = load(scores + ((r + 1) * tile.span + j + k) * lanes);
    }
    for (int64_t d = 0; d < n; ++d) {
        const float *q = tile.queries + d * tile.stride + r, *keys = tile.keys + d * tile.stride + j;
        const Floats first = load(q), second = load(q + 1);
#pragma GCC unroll 8
        for (int k = 0; k < J; ++k) {
            const Floats key = load(keys + k);
            one[k] = fma(first, key, one[k]);
            two[k] = fma(second, key, two[k]);
        }
    }
#pragma GCC unroll 8
    for (int k = 0; k < J; ++k) {
        store(scores + (r * tile.span + j + k) * lanes, one[k]);
        store(scores + ((r + 1) * tile.span + j + k) * lanes, two[k]);
    }
}

void score(const Gaps &call, const Tile &tile) {
    const int64_t width = call.channels / call.heads, span = tile.span;
    std::memset(tile.shares, 0, static_cast<size_t>(call.heads * span * span * lanes) * sizeof(float));
    for (int64_t head = 0; head < call.heads; ++head) {
        float *scores = tile.shares + head * span * span * lanes;
        sixteens(width, [&](int64_t d, int64_t n) {
            transposed(call, tile, head * width + d, n, tile.queries);
            transposed(call, tile, call.channels + head * width + d, n, tile.keys);
            for (int64_t r = 0; r < span; r += 2) {  // a window has as many keys before its gap as behind it
                int64_t j = 0;
                for (; j + 4 <= span; j += 4) score_keys<4>(tile, n, r, j, scores);
                for (; j < span; j += 2) score_keys<2>(tile, n, r, j, scores);
            }
        });
    }
}

// Scores to shares, row by row.
void weigh(const Gaps &call, const Tile &tile) {
    for (int64_t row = 0; row < call.heads * tile.span; ++row) {
        float *shares = tile.shares + row * tile.span * lanes;
        Floats top = load(shares), total = zero();
        for (int64_t j = 1; j < tile.span; ++j) top = max(top, load(shares + j * lanes));
        for (int64_t j = 0; j < tile.span; ++j) {
            const Floats power = exp_below(load(shares + j * lanes) - top);
            store(shares + j * lanes, power);
            total = total + power;
        }
        const Floats part = set(1.0f) / total;
        for (int64_t j = 0; j < tile.span; ++j) store(shares + j * lanes, load(shares + j * lanes) * part);
    }
}

// Numbers c .. c + C - 1 of what rows r .. r + R - 1 of all windows see; those of the values lie from `at` on.
template <int R, int C>
HAVERSACK_INLINE void mix_rows(const Gaps &call, const Tile &tile, int64_t r, int64_t c, int64_t at) {
    Floats sums[R][C];
#pragma GCC unroll 8
    for (int k = 0; k < R; ++k)
#pragma GCC unroll 8
        for (int i = 0; i < C; ++i) sums[k][i] = set(call.bias[c + i]);
    for (int64_t head = 0; head < call.heads; ++head) {
        const float *values = tile.values + (head * lanes + at) * tile.stride;
        const float *shares = tile.shares + (head * tile.span + r) * tile.span * lanes;
        for (int64_t j = 0; j < tile.span; ++j, shares += lanes) {
            Floats value[C];
#pragma GCC unroll 8
            for (int i = 0; i < C; ++i) value[i] = load(values + i * tile.stride + j);
#pragma GCC unroll 8
            for (int k = 0; k < R; ++k) {
                const Floats share = load(shares + k * tile.span * lanes);
#pragma GCC unroll 8
                for (int i = 0; i < C; ++i) sums[k][i] = fma(share, value[i], sums[k][i]);
            }
        }
    }
#pragma GCC unroll 8
    for (int k = 0; k < R; ++k)
#pragma GCC unroll 8
        for (int i = 0; i < C; ++i) store(tile.mixed + ((r + k) * call.channels + c + i) * lanes, sums[k][i]);
}

template <int C>
HAVERSACK_INLINE void mix_numbers(const Gaps &call, const Tile &tile, int64_t c, int64_t at) {
    int64_t r = 0;
    for (; r + most_rows <= tile.span; r += most_rows) mix_rows<most_rows, C>(call, tile, r, c, at);
    for (; r < tile.span; r += 2) mix_rows<2, C>(call, tile, r, c, at);
}

void mix(const Gaps &call, const Tile &tile) {
    sixteens(call.channels, [&](int64_t c, int64_t n) {
        for (int64_t head = 0; head < call.heads; ++head)
            transposed(call, tile, (2 + head) * call.channels + c, n, tile.values + head * lanes * tile.stride);
        int64_t i = 0;
        for (; i + numbers <= n; i += numbers) mix_numbers<numbers>(call, tile, c + i, i);
        for (; i < n; ++i) mix_numbers<1>(call, tile, c + i, i);
    });
}

// The sum of term(c) over the channels: four accumulators, number c goes to number c % 4.
template <typename Term>
HAVERSACK_INLINE Floats column_sum(int64_t channels, const Term &term) {
    Floats sums[4] = {zero(), zero(), zero(), zero()};
    int64_t c = 0;
    for (; c + 4 <= channels; c += 4)
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) sums[k] = sums[k] + term(c + k);
    for (int k = 0; c < channels; ++c, ++k) sums[k] = sums[k] + term(c);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The layer norm of each row and the means of both sides; then what is made of these.
void compare(const Gaps &call, const Tile &tile) {
    const int64_t channels = call.channels;
    const Floats size = set(static_cast<float>(channels)), side_size = set(static_cast<float>(call.window));
    float *left = tile.features, *right = left + channels * lanes, *apart = right + channels * lanes,
          *together = apart + channels * lanes;
    std::memset(left, 0, static_cast<size_t>(call.width * lanes) * sizeof(float));
    for (int64_t r = 0; r < tile.span; ++r) {
        const float *row = tile.mixed + r * channels * lanes;
        float *side = r < call.window ? left : right;
        const Floats mean = column_sum(channels, [&](int64_t c) { return load(row + c * lanes); }) / size;
        const Floats variance = column_sum(channels,
                                           [&](int64_t c) {
                                               const Floats off = load(row + c * lanes) - mean;
                                               return off * off;
                                           }) /
                                size;
        const Floats factor = set(1.0f) / sqrt(variance + set(call.eps));
        for (int64_t c = 0; c < channels; ++c)
            store(side + c * lanes, fma(load(row + c * lanes) - mean, factor, load(side + c * lanes)));
    }
    for (int64_t c = 0; c < channels; ++c) {
        const Floats weight = set(call.weight[c]), shift = set(call.shift[c]);
        const Floats l = fma(load(left + c * lanes) / side_size, weight, shift),
                     r = fma(load(right + c * lanes) / side_size, weight, shift);
        store(left + c * lanes, l);
        store(right + c * lanes, r);
        store(apart + c * lanes, abs(l - r));
        store(together + c * lanes, l * r);
    }
    const auto length = [&](const float *side) {
        return sqrt(column_sum(channels, [&](int64_t c) { return load(side + c * lanes) * load(side + c * lanes); }));
    };
    const Floats product = column_sum(channels, [&](int64_t c) { return load(together + c * lanes); });
    store(together + channels * lanes, product / max(length(left) * length(right), set(1e-8f)));
    for (int64_t at = 0; at < call.width; at += lanes) {
        const int64_t n = smaller_of<int64_t>(call.width - at, lanes);
        Floats block[lanes];
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i) block[i] = i < n ? load(tile.features + (at + i) * lanes) : zero();
        transpose(block);
        for (int64_t i = 0; i < tile.count; ++i) store_n(call.out + (tile.first + i) * call.width + at, block[i], n);
    }
}

void features(const Gaps &call) {
    const int64_t span = 2 * call.window, tiles = (call.gaps + lanes - 1) / lanes, stride = sixteenfold(span + lanes - 1);
    parallel(tiles, 1, [&](int64_t begin, int64_t end) {
        const int64_t block = lanes * stride, shares = call.heads * span * span * lanes, mixed = span * call.channels * lanes;
        float *memory = static_cast<float *>(
            scratch(2, static_cast<size_t>((2 + call.heads) * block + shares + mixed + call.width * lanes) * sizeof(float)));
        Tile tile = {};
        tile.span = span;
        tile.stride = stride;
        tile.queries = memory;
        tile.keys = tile.queries + block;
        tile.values = tile.keys + block;
        tile.shares = tile.values + call.heads * block;
        tile.mixed = tile.shares + shares;
        tile.features = tile.mixed + mixed;
        for (int64_t i = begin; i < end; ++i) {
            tile.first = i * lanes;
            tile.count = smaller_of<int64_t>(call.gaps - tile.first, lanes);
            tile.rows = tile.count + span - 1;
            score(call, tile);
            weigh(call, tile);
            mix(call, tile);
            compare(call, tile);
        }
    });
}

}  // namespace

HAVERSACK_TABLE(GapKernels, gaps) = {features};

}  // namespace haversack::HAVERSACK_TARGET
