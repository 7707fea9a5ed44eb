// Inputs made ready for the matrix products: tokens are taken in tiles, and a tile's tokens lie interleaved, so that a
// kernel walks one stream. Included by the matmul*.cpp files only, once per instruction set.
#pragma once
#include <type_traits>

#include "matmul.h"
#include "simd/simd.h"

namespace haversack::HAVERSACK_TARGET {

// Tokens of one tile, at most: what the registers hold beside the weights.
#if defined(__AVX512F__) && !defined(HAVERSACK_PORTABLE)
constexpr int float_tile = 6, packed_tile = 12;
#else
constexpr int float_tile = 2, packed_tile = 4;
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
void int8_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block);
void int4_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block);
void int8_float_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block);
void int4_float_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block);

// Calls kernel<T>(tile) with the tile's number of tokens as a constant.
template <int Most, typename Kernel>
HAVERSACK_INLINE void with_tokens(int tokens, const Kernel &kernel) {
    if constexpr (Most > 0) {
        if (tokens == Most) return kernel(std::integral_constant<int, Most>{});
        with_tokens<Most - 1>(tokens, kernel);
    }
}

// Tiles whose inputs together stay in the second-level cache while all rows pass by.
HAVERSACK_INLINE int64_t tiles_at_once(const Tiles &tiles, int64_t bytes_each_column) {
    const int64_t bytes = tiles.n * tiles.columns * bytes_each_column, kept = int64_t(384) << 10;
    const int64_t parts = (bytes + kept - 1) / kept;
    return larger_of<int64_t>(1, (tiles.count + parts - 1) / larger_of<int64_t>(1, parts));
}

// One row of 16 outputs of one token.
HAVERSACK_INLINE void finish(const Product &product, int64_t token, int64_t row, Floats sums) {
    const int64_t at = token * product.weights.rows + row, left = product.weights.rows - row;
    if (left >= lanes) {
        store(product.out + at, product.add ? sums + load(product.add + at) : sums);
    } else {
        store_part(product.out + at, product.add ? sums + load_part(product.add + at, left) : sums, left);
    }
}

}  // namespace haversack::HAVERSACK_TARGET
