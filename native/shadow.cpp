#include "shadow.h"

#include "base/pool.h"
#include "base/scratch.h"
#include "simd/simd.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

constexpr int64_t least_work = 16384;  // numbers that are worth handing to a thread

struct Beyond {
    int32_t at;   // input
    float steps;  // r - clip(r)
};

HAVERSACK_INLINE Floats clipped(Floats r) {
    const Floats low = set(-128.0f), high = set(127.0f);
    return select(less(r, low), low, select(less(high, r), high, r));  // NaN stays
}

// The inputs of a token that pass the grid, in their order.
int64_t find(const float *x, int64_t columns, float scale, Beyond *found) {
    const Floats inverse = set(1.0f / scale), limit = set(127.0f), lower = set(-128.0f);
    int64_t count = 0;
    for (int64_t k = 0; k < columns; k += lanes) {
        const int64_t here = smaller_of<int64_t>(columns - k, lanes);
        const Floats r = round((here == lanes ? load(x + k) : load_part(x + k, here)) * inverse);
        const Floats over = select(less(limit, r), set(1.0f), select(less(r, lower), set(1.0f), zero()));
        if (!(largest(over) > 0.0f)) continue;
        float steps[lanes];
        store(steps, r - clipped(r));
        for (int64_t i = 0; i < here; ++i)
            if (steps[i] > 0.0f || steps[i] < 0.0f) found[count++] = {static_cast<int32_t>(k + i), steps[i]};
    }
    return count;
}

// The codes of sixteen outputs for one input.
HAVERSACK_INLINE Floats codes(const uint8_t *quad, int lane) {
    const Quads bytes = load_quads(quad);
    switch (lane) {
    case 0: return byte_floats<0>(bytes) - set(128.0f);
    case 1: return byte_floats<1>(bytes) - set(128.0f);
    case 2: return byte_floats<2>(bytes) - set(128.0f);
    default: return byte_floats<3>(bytes) - set(128.0f);
    }
}

// Integers times integers: exact below 2^24.
HAVERSACK_INLINE Floats missed(const Shadow &shadow, const Beyond *beyond, int64_t count, int64_t block, int64_t here) {
    const Weights &weights = shadow.weights;
    const uint8_t *const packed = weights.data + block * weights.block_bytes();
    Floats sums = zero();
    for (int64_t i = 0; i < count; ++i) {
        const int32_t k = beyond[i].at, place = shadow.places ? shadow.places[k] : -1;
        const int8_t *const hot = place < 0 ? nullptr : shadow.hot + place * weights.rows + block * lanes;
        const Floats q = !hot            ? codes(packed + k / 4 * 64, static_cast<int>(k % 4))
                         : here == lanes ? load_i8(hot)
                                         : load_i8_part(hot, here);
        sums = fma(q, set(beyond[i].steps), sums);
    }
    return sums;
}

void token(const Shadow &shadow, const Beyond *beyond, int64_t count, const float *y, float *out, const float *add,
           const float *bias) {
    const Weights &weights = shadow.weights;
    const int64_t stride = weights.block_bytes();
    const bool rounds = shadow.out_scale > 0.0f;
    const Floats inverse = set(rounds ? 1.0f / shadow.out_scale : 0.0f), step = set(shadow.out_scale);
    for (int64_t block = 0; block < weights.blocks(); ++block) {
        const int64_t at = block * lanes, here = smaller_of<int64_t>(weights.rows - at, lanes);
        const auto read = [&](const float *p) { return here == lanes ? load(p + at) : load_part(p + at, here); };
        const Floats plain = read(y);
        Floats more = zero();
        if (count) {
            const Floats scale = load(weights.data + (block + 1) * stride - 64) * set(shadow.scale);
            more = missed(shadow, beyond, count, block, here) * scale;
        }
        Floats value = plain + more;
        if (rounds) {
            const Floats r = round(plain * inverse), on_grid = clipped(r);
            Floats kept = on_grid * step;
            if (count) kept = kept + more;
            if (shadow.outputs) {
                const Floats anew = round(value * inverse) * step;
                kept = select(less(set(126.5f), r), anew, select(less(r, set(-127.5f)), anew, kept));
            }
            value = kept;
        }
        if (add) value = read(add) + value;
        if (bias) value = value + read(bias);
        if (here == lanes)
            store(out + at, value);
        else
            store_part(out + at, value, here);
    }
}

void finish(const Shadow &shadow, const float *x, int64_t n, const float *y, float *out, const float *add, const float *bias) {
    if (n <= 0) return;
    const int64_t columns = shadow.weights.columns, rows = shadow.weights.rows;
    parallel(n, 1 + least_work / (rows + columns), [&](int64_t begin, int64_t end) {
        Beyond *const beyond = static_cast<Beyond *>(scratch(2, static_cast<size_t>(columns) * sizeof(Beyond)));
        for (int64_t t = begin; t < end; ++t) {
            const int64_t count = shadow.inputs ? find(x + t * columns, columns, shadow.scale, beyond) : 0;
            token(shadow, beyond, count, y + t * rows, out + t * rows, add ? add + t * rows : nullptr, bias);
        }
    });
}

}  // namespace

HAVERSACK_TABLE(ShadowKernels, shadow) = {finish};

}  // namespace haversack::HAVERSACK_TARGET
