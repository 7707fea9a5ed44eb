// Inputs made ready for the matrix products: tokens are taken in tiles, and a tile's tokens lie interleaved, so that a
// kernel walks one stream. Included by the matmul*.cpp files only, once per instruction set.
#pragma once
#include <type_traits>

#include "matmul.h"
#include "simd/simd.h"

namespace haversack::HAVERSACK_TARGET {

// Tokens of one tile, at most, and blocks of 16 rows beside each other: what the registers hold. float_tile: float weights;
// packed_float_tile: packed weights, f32 inputs; packed_tile: packed weights, int8 inputs; panel_tile: interleaved f32 weights.
#if defined(__AVX512F__) && !defined(HAVERSACK_PORTABLE)
constexpr int float_tile = 6, packed_float_tile = 12, packed_tile = 6, packed_blocks = 2;
constexpr int panel_tile = 12, panel_blocks_at_once = 2;
#else
constexpr int float_tile = 2, packed_float_tile = 4, packed_tile = 2, packed_blocks = 1;
constexpr int panel_tile = 6, panel_blocks_at_once = 1;
#endif

// Interleaved units: 16 floats for float kinds, 1 float for packed weights with f32 activations, 4 bytes for int8.
// Unit u of token t in a tile of T tokens is at [u * T + t].
struct Tiles {
    int64_t n;        // tokens
    int64_t count;    // tiles
    int64_t columns;  // padded
    int64_t groups;
    const char *data;
    const float *scales;         // [group * T + t] in each tile
    const int32_t *corrections;  // likewise: what the sums start from, since stored weights carry an offset

    int64_t first(int64_t tile) const { return n * tile / count; }  // tiles are as even as can be
    int size(int64_t tile) const { return static_cast<int>(first(tile + 1) - first(tile)); }
    template <typename T>
    const T *inputs(int64_t tile) const {
        return reinterpret_cast<const T *>(data) + first(tile) * columns;
    }
    const float *scales_of(int64_t tile) const { return scales + first(tile) * groups; }
    const int32_t *corrections_of(int64_t tile) const { return corrections + first(tile) * groups; }
};

// Rows 16 * first_block .. 16 * last_block of one product, for all tokens.
using BlockKernel = void (*)(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block);
void float_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block);
void panel_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block);
void int8_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block);
void int4_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block);
void int3_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block);
void int8_grouped_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block);
void int8_float_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block);
void int8_grouped_float_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block);
void int3_float_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block);
void int4_float_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block);

template <int N>
using Constant = std::integral_constant<int, N>;

// Calls kernel with the number of tokens as a constant.
template <int Most, typename Kernel>
HAVERSACK_INLINE void with_tokens(int tokens, const Kernel &kernel) {
    if constexpr (Most > 0) {
        if (tokens == Most) return kernel(Constant<Most>{});
        with_tokens<Most - 1>(tokens, kernel);
    }
}

// Tiles whose inputs together stay in the second-level cache while all rows pass by.
HAVERSACK_INLINE int64_t tiles_at_once(const Tiles &tiles, int64_t bytes_each_column) {
    const int64_t bytes = tiles.n * tiles.columns * bytes_each_column, kept = int64_t(384) << 10;
    const int64_t parts = (bytes + kept - 1) / kept;
    return larger_of<int64_t>(1, (tiles.count + parts - 1) / larger_of<int64_t>(1, parts));
}

// Packed weights with int8 inputs: calls tile(blocks, tokens, weights, x, scales, corrections, first token, first row).
template <int Most, typename Tile>
HAVERSACK_INLINE void walk_int8(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block,
                                const Tile &tile) {
    const int64_t bytes = product.weights.block_bytes(), step = tiles_at_once(tiles, 1);
    // One token alone reads one stream of weights: memory is what it waits for.
    const int64_t most = tiles.n == 1 ? 1 : Most;
    for (int64_t begin = 0; begin < tiles.count; begin += step) {
        const int64_t end = smaller_of(begin + step, tiles.count);
        for (int64_t block = first_block; block < last_block;) {
            const int64_t blocks = block + most <= last_block ? most : 1;
            const uint8_t *w = product.weights.data + block * bytes;
            for (int64_t i = begin; i < end; ++i)
                with_tokens<packed_tile>(tiles.size(i), [&](auto tokens) {
                    const int32_t *x = reinterpret_cast<const int32_t *>(tiles.inputs<int8_t>(i));
                    const float *scales = tiles.scales_of(i);
                    const int32_t *corrections = tiles.corrections_of(i);
                    if (blocks == 1) {
                        tile(Constant<1>{}, tokens, w, x, scales, corrections, tiles.first(i), block * 16);
                    } else if constexpr (Most > 1) {
                        tile(Constant<Most>{}, tokens, w, x, scales, corrections, tiles.first(i), block * 16);
                    }
                });
            block += blocks;
        }
    }
}

// Packed weights with f32 inputs: calls tile(blocks, tokens, weights, x, first token, first row).
template <typename Tile>
HAVERSACK_INLINE void walk_floats(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block,
                                  const Tile &tile) {
    const int64_t bytes = product.weights.block_bytes(), step = tiles_at_once(tiles, 4);
    const int64_t most = tiles.n == 1 ? 4 : 1;  // one token alone: four chains of sums hide each other's latency
    for (int64_t begin = 0; begin < tiles.count; begin += step) {
        const int64_t end = smaller_of(begin + step, tiles.count);
        for (int64_t block = first_block; block < last_block;) {
            const int64_t blocks = block + most <= last_block ? most : 1;
            const uint8_t *w = product.weights.data + block * bytes;
            for (int64_t i = begin; i < end; ++i)
                with_tokens<packed_float_tile>(tiles.size(i), [&](auto tokens) {
                    if (blocks == 1) {
                        tile(Constant<1>{}, tokens, w, tiles.inputs<float>(i), tiles.first(i), block * 16);
                    } else if constexpr (decltype(tokens)::value == 1) {
                        tile(Constant<4>{}, tokens, w, tiles.inputs<float>(i), tiles.first(i), block * 16);
                    }
                });
            block += blocks;
        }
    }
}

// One row of 16 outputs of one token.
HAVERSACK_INLINE void finish(const Product &product, int64_t token, int64_t row, Floats sums) {
    const int64_t at = token * product.weights.rows + row, left = product.weights.rows - row;
    if (left >= lanes) {
        if (product.add) sums = sums + load(product.add + at);
        if (product.bias) sums = sums + load(product.bias + row);
        store(product.out + at, sums);
    } else {
        if (product.add) sums = sums + load_part(product.add + at, left);
        if (product.bias) sums = sums + load_part(product.bias + row, left);
        store_part(product.out + at, sums, left);
    }
}

}  // namespace haversack::HAVERSACK_TARGET
