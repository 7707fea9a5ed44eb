// int8 weights in layout rows16-1 with an f16 scale for each row and group of 32 columns: lanes are 16 output rows.
#include "matmul_tiles.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

// int8 inputs. Inside a group the sums are exact integers; groups are added in order, in f32.
template <int Blocks, int T>
HAVERSACK_INLINE void int8_tile(const Product &product, const uint8_t *w, const int32_t *x, const float *scales,
                                const int32_t *corrections, int64_t token, int64_t row) {
    const int64_t groups = product.weights.groups(), stride = product.weights.block_bytes();
    Floats sums[Blocks][T];
    for (auto &of_block : sums)
        for (Floats &one : of_block) one = zero();
    for (int64_t g = 0; g < groups; ++g, scales += T, corrections += T) {
        // Two chains where one token alone would wait for its only one.
        Ints inside[Blocks][T], other[Blocks][T];
        for (int t = 0; t < T; ++t)
            for (int b = 0; b < Blocks; ++b) {
                inside[b][t] = set_ints(corrections[t]);
                other[b][t] = set_ints(0);
            }
        auto &second = T * Blocks <= 2 ? other : inside;
        for (int i = 0; i < 8; i += 2, w += 128, x += 2 * T) {
            Quads weights[Blocks];
            for (int b = 0; b < Blocks; ++b) weights[b] = load_quads(w + b * stride);
            for (int t = 0; t < T; ++t)
                for (int b = 0; b < Blocks; ++b) inside[b][t] = dot(inside[b][t], weights[b], x[t]);
            for (int b = 0; b < Blocks; ++b) weights[b] = load_quads(w + 64 + b * stride);
            for (int t = 0; t < T; ++t)
                for (int b = 0; b < Blocks; ++b) second[b][t] = dot(second[b][t], weights[b], x[T + t]);
        }
        for (int b = 0; b < Blocks; ++b) {
            const Floats scale = load_f16(w + b * stride);
            for (int t = 0; t < T; ++t) {
                if constexpr (T * Blocks <= 2) inside[b][t] = inside[b][t] + other[b][t];
                sums[b][t] = fma(to_floats(inside[b][t]), scale * set(scales[t]), sums[b][t]);
            }
        }
        w += 32;
    }
    for (int b = 0; b < Blocks; ++b)
        for (int t = 0; t < T; ++t) finish(product, token + t, row + 16 * b, sums[b][t]);
}

// f32 inputs: weights become floats in registers. A group's sum is scaled once and added to the output's.
template <int I, int Blocks, int T>
HAVERSACK_INLINE void bytes_of(const Quads *weights, const float *x, Floats (*sums)[T]) {
    if constexpr (I < 4) {
        for (int b = 0; b < Blocks; ++b) {
            const Floats w = byte_floats<I>(weights[b]) - set(128.0f);
            for (int t = 0; t < T; ++t) sums[b][t] = fma(w, set(x[I * T + t]), sums[b][t]);
        }
        bytes_of<I + 1, Blocks, T>(weights, x, sums);
    }
}

template <int Blocks, int T>
HAVERSACK_INLINE void float_tile_of(const Product &product, const uint8_t *w, const float *x, int64_t token, int64_t row) {
    const int64_t groups = product.weights.groups(), stride = product.weights.block_bytes();
    Floats sums[Blocks][T];
    for (auto &of_block : sums)
        for (Floats &one : of_block) one = zero();
    for (int64_t g = 0; g < groups; ++g) {
        Floats inside[Blocks][T];
        for (auto &of_block : inside)
            for (Floats &one : of_block) one = zero();
        for (int64_t i = 0; i < 8; ++i, w += 64, x += 4 * T) {
            Quads weights[Blocks];
            for (int b = 0; b < Blocks; ++b) weights[b] = load_quads(w + b * stride);
            bytes_of<0, Blocks, T>(weights, x, inside);
        }
        for (int b = 0; b < Blocks; ++b) {
            const Floats scale = load_f16(w + b * stride);
            for (int t = 0; t < T; ++t) sums[b][t] = fma(inside[b][t], scale, sums[b][t]);
        }
        w += 32;
    }
    for (int b = 0; b < Blocks; ++b)
        for (int t = 0; t < T; ++t) finish(product, token + t, row + 16 * b, sums[b][t]);
}

}  // namespace

void int8_grouped_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block) {
    walk_int8<packed_blocks>(product, tiles, first_block, last_block, [&](auto blocks, auto tokens, auto... rest) {
        int8_tile<decltype(blocks)::value, decltype(tokens)::value>(product, rest...);
    });
}

void int8_grouped_float_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block) {
    walk_floats(product, tiles, first_block, last_block, [&](auto blocks, auto tokens, auto... rest) {
        float_tile_of<decltype(blocks)::value, decltype(tokens)::value>(product, rest...);
    });
}

}  // namespace haversack::HAVERSACK_TARGET
