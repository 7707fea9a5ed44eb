// A column adds its input to the rows whose bit is set: one masked addition for 16 weights of a bit, and no weight is ever made.
// What the bits mean comes after the sums of a group: a code is its bits' sums times powers of two less the zero times the
// group's inputs added up, a sign is twice its bit's sum less those. Blocks of rows run beside each other, because one chain of
// additions waits for itself.
#include "nested.h"

#include "base/pool.h"
#include "base/scratch.h"
#include "simd/simd.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

constexpr int64_t least_work = int64_t(64) << 10;  // masked additions that are worth handing to a thread
#if defined(__AVX512F__) && !defined(HAVERSACK_PORTABLE)
constexpr int most_tokens = 4, blocks_at_once = 4;
#else
constexpr int most_tokens = 2, blocks_at_once = 2;
#endif

// sums[n, groups]: the inputs of each group added up.
const float *group_sums(const NestedPlane &plane, const float *x, int64_t n) {
    const int64_t groups = plane.groups();
    float *sums = static_cast<float *>(scratch(0, static_cast<size_t>(n * groups) * sizeof(float)));
    for (int64_t t = 0; t < n; ++t)
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t first = g * plane.group, count = smaller_of(plane.group, plane.columns - first);
            const float *in = x + t * plane.columns + first;
            Floats sum16 = zero();
            int64_t k = 0;
            for (; k + lanes <= count; k += lanes) sum16 = sum16 + load(in + k);
            if (k < count) sum16 = sum16 + load_part(in + k, count - k);
            sums[t * groups + g] = sum(sum16);
        }
    return sums;
}

// R blocks of rows from `data` on, T tokens.
template <int R, int T>
HAVERSACK_INLINE void tile(const NestedPlane &plane, const uint8_t *data, const float *x, const float *sums, Floats (*to)[T]) {
    const int64_t groups = plane.groups(), stride = plane.block_bytes();
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) to[r][t] = zero();
    for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = g * plane.group, count = smaller_of(plane.group, plane.columns - first);
        Floats code[R][T];
        for (int bit = 0; bit < plane.bits; ++bit) {
            Floats found[R][T];
            for (auto &of_row : found)
                for (Floats &one : of_row) one = zero();
            const uint8_t *masks = data + bit * count * 2;
            for (int64_t k = 0; k < count; ++k) {
                uint16_t rows[R];
                for (int r = 0; r < R; ++r) std::memcpy(rows + r, masks + r * stride + 2 * k, 2);
                for (int t = 0; t < T; ++t) {
                    const Floats input = set(x[t * plane.columns + first + k]);
                    for (int r = 0; r < R; ++r) found[r][t] = add_where(found[r][t], rows[r], input);
                }
            }
            const Floats worth = set(static_cast<float>(1 << bit));
            for (int r = 0; r < R; ++r)
                for (int t = 0; t < T; ++t) code[r][t] = bit ? fma(worth, found[r][t], code[r][t]) : found[r][t];
        }
        const uint8_t *ends = data + plane.bits * count * 2;
        for (int r = 0; r < R; ++r) {
            const Floats scale = load_f16(reinterpret_cast<const uint16_t *>(ends + r * stride));
            for (int t = 0; t < T; ++t) {
                const Floats less = set(-sums[t * groups + g]);
                const Floats value =
                    plane.base ? fma(load_f16(reinterpret_cast<const uint16_t *>(ends + r * stride + 32)), less, code[r][t])
                               : fma(set(2.0f), code[r][t], less);
                to[r][t] = fma(scale, value, to[r][t]);
            }
        }
        data = ends + (plane.base ? 64 : 32);
    }
}

template <int R, int T>
HAVERSACK_INLINE void rows_of(const NestedPlane &plane, int64_t block, const float *x, const float *sums, float *out) {
    Floats found[R][T];
    tile<R, T>(plane, plane.data + block * plane.block_bytes(), x, sums, found);
    for (int r = 0; r < R; ++r) {
        const int64_t row = (block + r) * lanes, count = smaller_of(static_cast<int64_t>(lanes), plane.rows - row);
        for (int t = 0; t < T; ++t) {
            float *at = out + t * plane.rows + row;
            store_part(at, load_part(at, count) + found[r][t], count);
        }
    }
}

template <int T>
void tokens_of(const NestedPlane &plane, const float *x, const float *sums, float *out) {
    const int64_t blocks = plane.blocks(), tiles = (blocks + blocks_at_once - 1) / blocks_at_once;
    const int64_t work = 1 + plane.columns * plane.bits * blocks_at_once * T;
    parallel(tiles, 1 + least_work / work, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
            int64_t block = at * blocks_at_once;
            if (block + blocks_at_once <= blocks)
                rows_of<blocks_at_once, T>(plane, block, x, sums, out);
            else
                for (; block < blocks; ++block) rows_of<1, T>(plane, block, x, sums, out);
        }
    });
}

template <int T>
HAVERSACK_INLINE void with_tokens(int tokens, const NestedPlane &plane, const float *x, const float *sums, float *out) {
    if constexpr (T > 0) {
        if (tokens == T) return tokens_of<T>(plane, x, sums, out);
        with_tokens<T - 1>(tokens, plane, x, sums, out);
    }
}

void add(const NestedPlane &plane, const float *x, int64_t n, float *out) {
    if (n <= 0) return;
    const float *sums = group_sums(plane, x, n);
    const int64_t tiles = (n + most_tokens - 1) / most_tokens;
    for (int64_t at = 0; at < tiles; ++at) {
        const int64_t first = n * at / tiles, next = n * (at + 1) / tiles;
        with_tokens<most_tokens>(static_cast<int>(next - first), plane, x + first * plane.columns,
                                 sums + first * plane.groups(), out + first * plane.rows);
    }
}

}  // namespace

HAVERSACK_TABLE(NestedKernels, nested) = {add};

}  // namespace haversack::HAVERSACK_TARGET
