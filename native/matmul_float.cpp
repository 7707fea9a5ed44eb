// Float weights, row-major, as they lie in hub files. Lanes run along the inputs: each output has one accumulator of 16
// lanes, and the lanes are added in a fixed tree at the end.
#include "matmul_tiles.h"
#include "simd/float_kinds.h"
#include "simd/sums.h"
#include "simd/unrolled.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

// Rows by T tokens. x: interleaved units of 16 inputs, zeros behind the last. First: no tile before this one read these rows.
template <typename Type, int Rows, int T, bool First>
HAVERSACK_INLINE void tile(const Product &product, const float *x, int64_t token, int64_t row) {
    const int64_t columns = product.weights.columns, stride = columns * Type::bytes;
    const uint8_t *w = product.weights.data + row * stride;
    Floats sums[Rows * T];  // of row r and token t at [t * Rows + r]
    unrolled<Rows * T>([&](auto i) HAVERSACK_ALWAYS { sums[i] = zero(); });
    int64_t k = 0;
    for (; k + lanes <= columns; k += lanes, w += lanes * Type::bytes, x += lanes * T) {
        Floats weights[Rows];
        unrolled<Rows>([&](auto r) HAVERSACK_ALWAYS {
            // Few tokens wait for memory: call for the next rows while these are read.
            if constexpr (First && Rows > 1) prefetch_far(w + (r + Rows) * stride);
            weights[r] = Type::whole(w + r * stride);
        });
        unrolled<T>([&](auto t) HAVERSACK_ALWAYS {
            const Floats input = load(x + lanes * t);
            unrolled<Rows>([&](auto r) HAVERSACK_ALWAYS { sums[t * Rows + r] = fma(weights[r], input, sums[t * Rows + r]); });
        });
    }
    if (k < columns)
        unrolled<Rows>([&](auto r) HAVERSACK_ALWAYS {
            const Floats weights = Type::part(w + r * stride, columns - k);
            unrolled<T>([&](auto t)
                            HAVERSACK_ALWAYS { sums[t * Rows + r] = fma(weights, load(x + lanes * t), sums[t * Rows + r]); });
        });
    float values[Rows * T];
    add_lanes<Rows * T>(sums, values);
    for (int t = 0; t < T; ++t) {
        const int64_t at = (token + t) * product.weights.rows + row;
        float own[Rows], more[Rows];
        std::memcpy(own, values + t * Rows, sizeof own);
        if (product.add) {
            std::memcpy(more, product.add + at, sizeof more);
            for (int r = 0; r < Rows; ++r) own[r] += more[r];
        }
        if (product.bias) {
            std::memcpy(more, product.bias + row, sizeof more);
            for (int r = 0; r < Rows; ++r) own[r] += more[r];
        }
        std::memcpy(product.out + at, own, sizeof own);
    }
}

template <typename Type>
void blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block) {
    const int64_t last_row = smaller_of(last_block * 16, product.weights.rows);
    const int64_t step = tiles_at_once(tiles, 4);
    // Enough sums at once to hide the latency of one, few enough to stay in registers.
    const int64_t most = tiles.n == 1 || float_tile > 2 ? 4 : 2;
    for (int64_t begin = 0; begin < tiles.count; begin += step) {
        const int64_t end = smaller_of(begin + step, tiles.count);
        for (int64_t row = first_block * 16; row < last_row;) {
            const int64_t rows = row + most <= last_row ? most : 1;
            for (int64_t i = begin; i < end; ++i)
                with_tokens<float_tile>(tiles.size(i), [&](auto tokens) {
                    constexpr int T = decltype(tokens)::value;
                    const float *x = tiles.inputs<float>(i);
                    const int64_t token = tiles.first(i);
                    if (rows == 1)
                        tile<Type, 1, T, false>(product, x, token, row);
                    else if (rows == 2)
                        i == begin ? tile<Type, 2, T, true>(product, x, token, row)
                                   : tile<Type, 2, T, false>(product, x, token, row);
                    else if constexpr (T == 1 || float_tile > 2)
                        i == begin ? tile<Type, 4, T, true>(product, x, token, row)
                                   : tile<Type, 4, T, false>(product, x, token, row);
                });
            row += rows;
        }
    }
}

}  // namespace

void float_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block) {
    const Kind kind = product.weights.kind;
    (kind == Kind::f32 ? blocks<F32> : kind == Kind::f16 ? blocks<F16> : blocks<Bf16>)(product, tiles, first_block, last_block);
}

}  // namespace haversack::HAVERSACK_TARGET
