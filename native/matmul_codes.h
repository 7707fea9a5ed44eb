// Weights of 3 or 4 bits in layout rows16-1, an f16 scale for each row and group of columns: lanes are 16 output rows.
// `Codes` says how the numbers lie: in steps of `bytes` bytes, each of which holds `quads` times 4 columns.
//   quad<Q>(w)    the unsigned numbers of columns 4 Q .. 4 Q + 3 of the step at w
//   Step, step(w) what a step's floats are made of
//   number<I>(s)  column I of a step as a float, less the offset with which it is stored
#pragma once
#include "matmul_tiles.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

// The dot products of one step: odd quads go to a chain of their own.
template <typename Codes, int Q, int Blocks, int T>
HAVERSACK_INLINE void dots(const uint8_t *w, int64_t stride, const int32_t *x, Few (*even)[T], Few (*odd)[T]) {
    if constexpr (Q < Codes::quads) {
        Quads numbers[Blocks];
        for (int b = 0; b < Blocks; ++b) numbers[b] = Codes::template quad<Q>(w + b * stride);
        Few(*sums)[T] = Q % 2 ? odd : even;
        for (int t = 0; t < T; ++t)
            for (int b = 0; b < Blocks; ++b) sums[b][t] = dot_few(sums[b][t], numbers[b], x[Q * T + t]);
        dots<Codes, Q + 1, Blocks, T>(w, stride, x, even, odd);
    }
}

// int8 inputs. Inside a group the sums are exact integers; groups are added in order, in f32.
template <typename Codes, int Blocks, int T>
HAVERSACK_INLINE void int8_tile(const Product &product, const uint8_t *w, const int32_t *x, const float *scales,
                                const int32_t *corrections, int64_t token, int64_t row) {
    const int64_t groups = product.weights.groups(), parts = product.weights.group / 32;
    const int64_t stride = product.weights.block_bytes();
    Floats sums[Blocks][T];
    for (auto &of_block : sums)
        for (Floats &one : of_block) one = zero();
    for (int64_t g = 0; g < groups; ++g, scales += T, corrections += T) {
        Ints inside[Blocks][T];
        for (int t = 0; t < T; ++t)
            for (int b = 0; b < Blocks; ++b) inside[b][t] = set_ints(corrections[t]);
        for (int64_t part = 0; part < parts; ++part) {
            // Even and odd quads have a chain each where one token alone would wait for its only one.
            Few even[Blocks][T], odd[Blocks][T];
            for (int t = 0; t < T; ++t)
                for (int b = 0; b < Blocks; ++b) {
                    even[b][t] = begin_few(inside[b][t]);
                    odd[b][t] = begin_few(set_ints(0));
                }
            auto &second = T * Blocks <= 2 ? odd : even;
            for (int i = 0; i < 8; i += Codes::quads, w += Codes::bytes, x += Codes::quads * T)
                dots<Codes, 0, Blocks, T>(w, stride, x, even, second);
            for (int t = 0; t < T; ++t)
                for (int b = 0; b < Blocks; ++b) {
                    inside[b][t] = end_few(even[b][t], inside[b][t]);
                    if constexpr (T * Blocks <= 2) inside[b][t] = inside[b][t] + end_few(odd[b][t], set_ints(0));
                }
        }
        for (int b = 0; b < Blocks; ++b) {
            const Floats scale = load_f16(w + b * stride);
            for (int t = 0; t < T; ++t) sums[b][t] = fma(to_floats(inside[b][t]), scale * set(scales[t]), sums[b][t]);
        }
        w += 32;
    }
    for (int b = 0; b < Blocks; ++b)
        for (int t = 0; t < T; ++t) finish(product, token + t, row + 16 * b, sums[b][t]);
}

// f32 inputs: weights become floats in registers. A group's sum is scaled once and added to the output's.
template <typename Codes, int I, int Blocks, int T>
HAVERSACK_INLINE void numbers(const typename Codes::Step *steps, const float *x, Floats (*sums)[T]) {
    if constexpr (I < 4 * Codes::quads) {
        for (int b = 0; b < Blocks; ++b) {
            const Floats w = Codes::template number<I>(steps[b]);
            for (int t = 0; t < T; ++t) sums[b][t] = fma(w, set(x[I * T + t]), sums[b][t]);
        }
        numbers<Codes, I + 1, Blocks, T>(steps, x, sums);
    }
}

template <typename Codes, int Blocks, int T>
HAVERSACK_INLINE void float_tile_of(const Product &product, const uint8_t *w, const float *x, int64_t token, int64_t row) {
    constexpr int columns = 4 * Codes::quads;
    const int64_t groups = product.weights.groups(), steps = product.weights.group / columns;
    const int64_t stride = product.weights.block_bytes();
    Floats sums[Blocks][T];
    for (auto &of_block : sums)
        for (Floats &one : of_block) one = zero();
    for (int64_t g = 0; g < groups; ++g) {
        Floats inside[Blocks][T];
        for (auto &of_block : inside)
            for (Floats &one : of_block) one = zero();
        for (int64_t i = 0; i < steps; ++i, w += Codes::bytes, x += columns * T) {
            typename Codes::Step weights[Blocks];
            for (int b = 0; b < Blocks; ++b) weights[b] = Codes::step(w + b * stride);
            numbers<Codes, 0, Blocks, T>(weights, x, inside);
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

template <typename Codes>
HAVERSACK_INLINE void code_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block) {
    walk_int8<packed_blocks>(product, tiles, first_block, last_block, [&](auto blocks, auto tokens, auto... rest) {
        int8_tile<Codes, decltype(blocks)::value, decltype(tokens)::value>(product, rest...);
    });
}

template <typename Codes>
HAVERSACK_INLINE void code_float_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block) {
    walk_floats(product, tiles, first_block, last_block, [&](auto blocks, auto tokens, auto... rest) {
        float_tile_of<Codes, decltype(blocks)::value, decltype(tokens)::value>(product, rest...);
    });
}

}  // namespace
}  // namespace haversack::HAVERSACK_TARGET
