// f32 weights in layout rows16-1: 16 output rows are interleaved, lanes are output rows. A copy of row-major weights that is
// made at load where many tokens pass at once (encoders); each output is one chain of fma over the inputs in order.
#include "matmul_tiles.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

template <int Blocks, int T>
HAVERSACK_INLINE void tile(const Product &product, const uint8_t *w, const float *x, int64_t token, int64_t row) {
    const int64_t columns = product.weights.columns, stride = product.weights.block_bytes();
    Floats sums[Blocks][T];
    for (auto &of_block : sums)
        for (Floats &one : of_block) one = zero();
    for (int64_t k = 0; k < columns; ++k, w += 64, x += T) {
        Floats weights[Blocks];
        for (int b = 0; b < Blocks; ++b) weights[b] = load(w + b * stride);
        for (int t = 0; t < T; ++t) {
            const Floats input = set(x[t]);
            for (int b = 0; b < Blocks; ++b) sums[b][t] = fma(weights[b], input, sums[b][t]);
        }
    }
    for (int b = 0; b < Blocks; ++b)
        for (int t = 0; t < T; ++t) finish(product, token + t, row + 16 * b, sums[b][t]);
}

}  // namespace

void panel_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block) {
    const int64_t bytes = product.weights.block_bytes(), step = tiles_at_once(tiles, 4);
    // One token alone: four chains of sums hide each other's latency.
    const int64_t most = tiles.n == 1 ? 4 : panel_blocks_at_once;
    for (int64_t begin = 0; begin < tiles.count; begin += step) {
        const int64_t end = smaller_of(begin + step, tiles.count);
        for (int64_t block = first_block; block < last_block;) {
            const int64_t blocks = block + most <= last_block ? most : 1;
            const uint8_t *w = product.weights.data + block * bytes;
            for (int64_t i = begin; i < end; ++i)
                with_tokens<panel_tile>(tiles.size(i), [&](auto tokens) {
                    constexpr int T = decltype(tokens)::value;
                    const float *x = tiles.inputs<float>(i);
                    const int64_t token = tiles.first(i);
                    if (blocks == 1) {
                        tile<1, T>(product, w, x, token, block * 16);
                    } else if constexpr (T == 1) {
                        if (blocks == 4)
                            tile<4, T>(product, w, x, token, block * 16);
                        else
                            tile<panel_blocks_at_once, T>(product, w, x, token, block * 16);
                    } else {
                        tile<panel_blocks_at_once, T>(product, w, x, token, block * 16);
                    }
                });
            block += blocks;
        }
    }
}

}  // namespace haversack::HAVERSACK_TARGET
