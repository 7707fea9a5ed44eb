// Matrix products: inputs are made ready once for all products that share them, then blocks of 16 output rows are dealt
// out to the threads. A thread computes whole outputs, never part of a sum.
#include "matmul.h"

#include "base/pool.h"
#include "base/scratch.h"
#include "matmul_tiles.h"
#include "quantize.h"
#include "simd/transpose.h"

namespace haversack::HAVERSACK_TARGET {

extern const QuantizeKernels quantize_table;

namespace {

constexpr int64_t least_work = int64_t(48) << 10;  // bytes of weights times tokens: what is worth handing to a thread

// `tokens` rows of x, at most 16, as units of 16 floats or of 1; zeros behind the last column.
void interleave(const float *x, int64_t columns, int64_t padded, int tokens, int64_t unit, float *to) {
    const auto at = [&](int t, int64_t k) {
        const float *from = x + t * columns + k;
        return k + lanes <= columns ? load(from) : load_part(from, larger_of<int64_t>(columns - k, 0));
    };
    if (unit == lanes) {
        for (int t = 0; t < tokens; ++t)
            for (int64_t k = 0; k < padded; k += lanes) store(to + k * tokens + t * lanes, at(t, k));
        return;
    }
    const int64_t end = padded * tokens;
    for (int64_t k = 0; k < padded; k += lanes) {
        Floats rows[lanes];
#pragma GCC unroll 16
        for (int t = 0; t < lanes; ++t) rows[t] = t < tokens ? at(t, k) : zero();
        transpose(rows);
        // What a whole vector writes too far, the next one writes again.
        for (int64_t i = 0; i < lanes && k + i < padded; ++i) {
            const int64_t place = (k + i) * tokens;
            if (place + lanes <= end)
                store(to + place, rows[i]);
            else
                store_part(to + place, rows[i], tokens);
        }
    }
}

// Inputs as f32 in units of `unit` floats.
Tiles ready_floats(const float *x, int64_t n, int64_t columns, int64_t padded, int64_t unit, int most) {
    Tiles tiles = {n, (n + most - 1) / most, padded, 0, nullptr, nullptr, nullptr};
    if (n == 1 && padded == columns) {
        tiles.data = reinterpret_cast<const char *>(x);
        return tiles;
    }
    float *data = static_cast<float *>(scratch(0, static_cast<size_t>(n * padded) * sizeof(float)));
    tiles.data = reinterpret_cast<const char *>(data);
    parallel(tiles.count, 1 + 16384 / (padded * most), [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) {
            const int64_t token = tiles.first(tile);
            interleave(x + token * columns, columns, padded, tiles.size(tile), unit, data + token * padded);
        }
    });
    return tiles;
}

// Inputs as int8 in units of 4, with a scale and a correction for each group.
Tiles ready_int8(const float *x, int64_t n, const Weights &weights, Fixed fixed) {
    const int64_t groups = weights.groups(), padded = groups * weights.group, columns = weights.columns;
    const int32_t offset = weights.kind == Kind::int4 ? 8 : weights.kind == Kind::int3 ? 4 : 128;
    Tiles tiles = {n, (n + packed_tile - 1) / packed_tile, padded, groups, nullptr, nullptr, nullptr};
    char *data = static_cast<char *>(scratch(0, static_cast<size_t>(n * padded)));
    float *scales = static_cast<float *>(scratch(1, static_cast<size_t>(n * groups) * 8));
    int32_t *corrections = reinterpret_cast<int32_t *>(scales + n * groups);
    tiles.data = data;
    tiles.scales = scales;
    tiles.corrections = corrections;
    const auto quantize = quantize_table.token;
    parallel(tiles.count, 1 + 16384 / (padded * packed_tile), [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) {
            const int64_t token = tiles.first(tile);
            const int tokens = tiles.size(tile);
            if (tokens == 1) {
                quantize(x + token * columns, columns, weights.group, fixed, offset,
                         reinterpret_cast<int8_t *>(data) + token * padded, scales + token * groups,
                         corrections + token * groups);
                continue;
            }
            char *own = static_cast<char *>(scratch(2, static_cast<size_t>(padded + groups * 8)));
            float *own_scales = reinterpret_cast<float *>(own + padded);
            int32_t *own_corrections = reinterpret_cast<int32_t *>(own_scales + groups);
            for (int t = 0; t < tokens; ++t) {
                quantize(x + (token + t) * columns, columns, weights.group, fixed, offset, reinterpret_cast<int8_t *>(own),
                         own_scales, own_corrections);
                char *to = data + token * padded + 4 * t;
                for (int64_t u = 0; u < padded / 4; ++u) std::memcpy(to + 4 * u * tokens, own + 4 * u, 4);
                for (int64_t g = 0; g < groups; ++g) {
                    scales[token * groups + g * tokens + t] = own_scales[g];
                    corrections[token * groups + g * tokens + t] = own_corrections[g];
                }
            }
        }
    });
    return tiles;
}

// Products that take the same inputs: same kind of input, same groups.
bool alike(const Weights &a, const Weights &b) {
    if (a.packed() != b.packed() || a.interleaved != b.interleaved) return false;
    return !a.packed() || (a.kind == b.kind && a.group == b.group);
}

void alike_products(const float *x, int64_t n, const Product *products, int count, Activations activations, Fixed fixed) {
    const Weights &first = products[0].weights;
    const bool floats = activations == Activations::f32;
    const Tiles tiles = first.interleaved ? ready_floats(x, n, first.columns, first.columns, 1, panel_tile)
                        : !first.packed() ? ready_floats(x, n, first.columns, (first.columns + 15) / 16 * 16, 16, float_tile)
                        : floats ? ready_floats(x, n, first.columns, first.groups() * first.group, 1, packed_float_tile)
                                 : ready_int8(x, n, first, activations == Activations::int8_static ? fixed : Fixed{});
    BlockKernel kernel = float_blocks;
    if (first.interleaved) kernel = panel_blocks;
    if (first.kind == Kind::int8) kernel = floats ? int8_float_blocks : int8_blocks;
    if (first.kind == Kind::int4) kernel = floats ? int4_float_blocks : int4_blocks;
    if (first.kind == Kind::int3) kernel = floats ? int3_float_blocks : int3_blocks;
    if (first.kind == Kind::int8_grouped) kernel = floats ? int8_grouped_float_blocks : int8_grouped_blocks;
    int64_t total = 0, bytes = 0;
    for (int i = 0; i < count; ++i) {
        total += products[i].weights.blocks();
        bytes += products[i].weights.blocks() * products[i].weights.block_bytes();
    }
    const int64_t work = bytes / total * n;  // of one block
    parallel(total, (least_work + work - 1) / work, [&](int64_t begin, int64_t end) {
        int64_t before = 0;
        for (int i = 0; i < count; ++i) {
            const int64_t blocks = products[i].weights.blocks();
            const int64_t from = larger_of<int64_t>(begin - before, 0), to = smaller_of<int64_t>(end - before, blocks);
            if (from < to) kernel(products[i], tiles, from, to);
            before += blocks;
        }
    });
}

void products(const float *x, int64_t n, const Product *list, int count, Activations activations, Fixed fixed) {
    if (n <= 0) return;
    for (int begin = 0, end; begin < count; begin = end) {
        for (end = begin + 1; end < count && alike(list[begin].weights, list[end].weights);) ++end;
        alike_products(x, n, list + begin, end - begin, activations, fixed);
    }
}

}  // namespace

HAVERSACK_TABLE(MatmulKernels, matmul) = {products};

}  // namespace haversack::HAVERSACK_TARGET
