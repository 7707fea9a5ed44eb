// int4 weights in layout rows16-1: lanes are 16 output rows.
#include "matmul_tiles.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

constexpr int64_t ahead = 1024;  // bytes: how far before their use weights are called for

// int8 inputs. Inside a group the sums are exact integers; groups are added in order, in f32.
template <int T>
HAVERSACK_INLINE void int8_tile(const Product &product, const uint8_t *w, const int32_t *x, const float *scales,
                                const int32_t *corrections, int64_t token, int64_t row) {
    const int64_t groups = product.weights.groups(), parts = product.weights.group / 32;
    Floats sums[T];
    for (Floats &one : sums) one = zero();
    for (int64_t g = 0; g < groups; ++g) {
        Ints low[T], high[T];
        for (int t = 0; t < T; ++t) low[t] = set_ints(corrections[t]);
        if constexpr (T == 1) high[0] = set_ints(0);  // a second chain where one token alone would wait for the first
        for (int64_t part = 0; part < parts; ++part) {
            for (int i = 0; i < 4; ++i, w += 64, x += 2 * T) {
                if constexpr (T == 1) prefetch(w + ahead);
                const Quads weights = load_quads(w), first = low_nibbles(weights), second = high_nibbles(weights);
                for (int t = 0; t < T; ++t) low[t] = dot_small(low[t], first, x[t]);
                Ints *other = T == 1 ? high : low;
                for (int t = 0; t < T; ++t) other[t] = dot_small(other[t], second, x[T + t]);
            }
        }
        if constexpr (T == 1) low[0] = low[0] + high[0];
        const Floats scale = load_f16(w);
        w += 32;
        for (int t = 0; t < T; ++t) sums[t] = fma(to_floats(low[t]), scale * set(scales[t]), sums[t]);
        scales += T;
        corrections += T;
    }
    for (int t = 0; t < T; ++t) finish(product, token + t, row, sums[t]);
}

// f32 inputs: weights become floats in registers. A group's sum is scaled once and added to the output's.
template <int I, int Blocks, int T>
HAVERSACK_INLINE void nibbles(const Quads *weights, const float *x, Floats (*sums)[T]) {
    if constexpr (I < 8) {
        for (int b = 0; b < Blocks; ++b) {
            const Floats w = nibble_floats<I>(weights[b]);
            for (int t = 0; t < T; ++t) sums[b][t] = fma(w, set(x[I * T + t]), sums[b][t]);
        }
        nibbles<I + 1, Blocks, T>(weights, x, sums);
    }
}

template <int Blocks, int T>
HAVERSACK_INLINE void float_tile_of(const Product &product, const uint8_t *w, const float *x, int64_t token, int64_t row) {
    const int64_t groups = product.weights.groups(), eights = product.weights.group / 8;
    const int64_t stride = product.weights.block_bytes();
    Floats sums[Blocks][T];
    for (auto &of_block : sums)
        for (Floats &one : of_block) one = zero();
    for (int64_t g = 0; g < groups; ++g) {
        Floats inside[Blocks][T];
        for (auto &of_block : inside)
            for (Floats &one : of_block) one = zero();
        for (int64_t i = 0; i < eights; ++i, w += 64, x += 8 * T) {
            Quads weights[Blocks];
            for (int b = 0; b < Blocks; ++b) weights[b] = load_quads(w + b * stride);
            nibbles<0, Blocks, T>(weights, x, inside);
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

void int4_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block) {
    const int64_t bytes = product.weights.block_bytes(), step = tiles_at_once(tiles, 1);
    for (int64_t begin = 0; begin < tiles.count; begin += step) {
        const int64_t end = smaller_of(begin + step, tiles.count);
        for (int64_t block = first_block; block < last_block; ++block)
            for (int64_t i = begin; i < end; ++i)
                with_tokens<packed_tile>(tiles.size(i), [&](auto tokens) {
                    int8_tile<decltype(tokens)::value>(product, product.weights.data + block * bytes,
                                                       reinterpret_cast<const int32_t *>(tiles.inputs<int8_t>(i)),
                                                       tiles.scales_of(i), tiles.corrections_of(i), tiles.first(i), block * 16);
                });
    }
}

void int4_float_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block) {
    const int64_t bytes = product.weights.block_bytes(), step = tiles_at_once(tiles, 4);
    for (int64_t begin = 0; begin < tiles.count; begin += step) {
        const int64_t end = smaller_of(begin + step, tiles.count);
        for (int64_t block = first_block; block < last_block;) {
            int done = 1;
            for (int64_t i = begin; i < end; ++i)
                with_tokens<packed_tile>(tiles.size(i), [&](auto tokens) {
                    constexpr int T = decltype(tokens)::value;
                    const uint8_t *w = product.weights.data + block * bytes;
                    const float *x = tiles.inputs<float>(i);
                    if (T == 1 && block + 4 <= last_block) {
                        float_tile_of<T == 1 ? 4 : 1, T>(product, w, x, tiles.first(i), block * 16);
                        done = 4;
                    } else {
                        float_tile_of<1, T>(product, w, x, tiles.first(i), block * 16);
                    }
                });
            block += done;
        }
    }
}

}  // namespace haversack::HAVERSACK_TARGET
