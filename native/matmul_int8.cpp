// int8 weights in layout rows16-1, one scale per row: lanes are 16 output rows.
#include "matmul_tiles.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

constexpr int64_t ahead = 1024;  // bytes: how far before their use weights are called for

// int8 inputs. Inside a group of inputs the sums are exact integers; groups are added in order, in f32.
template <int T>
HAVERSACK_INLINE void int8_tile(const Product &product, const uint8_t *w, const int32_t *x, const float *scales,
                                const int32_t *corrections, int64_t token, int64_t row) {
    const int64_t groups = product.weights.groups();
    Floats sums[T];
    for (Floats &one : sums) one = zero();
    for (int64_t g = 0; g < groups; ++g) {
        Ints inside[T], other[T];
        for (int t = 0; t < T; ++t) inside[t] = set_ints(corrections[t]);
        if constexpr (T == 1) other[0] = set_ints(0);  // a second chain where one token alone would wait for the first
        for (int i = 0; i < 8; i += 2, w += 128, x += 2 * T) {
            if constexpr (T == 1) {
                prefetch(w + ahead);
                prefetch(w + ahead + 64);
            }
            const Quads first = load_quads(w), second = load_quads(w + 64);
            for (int t = 0; t < T; ++t) inside[t] = dot(inside[t], first, x[t]);
            Ints *chain = T == 1 ? other : inside;
            for (int t = 0; t < T; ++t) chain[t] = dot(chain[t], second, x[T + t]);
        }
        if constexpr (T == 1) inside[0] = inside[0] + other[0];
        for (int t = 0; t < T; ++t) sums[t] = fma(to_floats(inside[t]), set(scales[t]), sums[t]);
        scales += T;
        corrections += T;
    }
    const Floats scale = load(w);
    for (int t = 0; t < T; ++t) finish(product, token + t, row, sums[t] * scale);
}

// f32 inputs: weights become floats in registers.
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
    const int64_t quads = product.weights.groups() * (int8_columns / 4), stride = product.weights.block_bytes();
    Floats sums[Blocks][T];
    for (auto &of_block : sums)
        for (Floats &one : of_block) one = zero();
    for (int64_t i = 0; i < quads; ++i, w += 64, x += 4 * T) {
        Quads weights[Blocks];
        for (int b = 0; b < Blocks; ++b) weights[b] = load_quads(w + b * stride);
        bytes_of<0, Blocks, T>(weights, x, sums);
    }
    for (int b = 0; b < Blocks; ++b) {
        const Floats scale = load(w + b * stride);
        for (int t = 0; t < T; ++t) finish(product, token + t, row + 16 * b, sums[b][t] * scale);
    }
}

}  // namespace

void int8_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block) {
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

void int8_float_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block) {
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
