#include "outliers.h"

#include "base/pool.h"
#include "base/scratch.h"
#include "simd/simd.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

constexpr int64_t least_work = 16384;  // products that are worth handing to a thread

// fma() of one number: the same roundings as its lanes.
HAVERSACK_INLINE float fused(float a, float b, float c) {
#if defined(HAVERSACK_PORTABLE)
    return a * b + c;
#else
    return __builtin_fmaf(a, b, c);
#endif
}

// Tokens by sixteens are lanes: their inputs lie turned, [tile][column][token].
const float *turned(const float *x, int64_t tiles, int64_t columns) {
    if (tiles == 0) return nullptr;
    float *to = static_cast<float *>(scratch(0, static_cast<size_t>(tiles * columns * lanes) * sizeof(float)));
    parallel(tiles, 1, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile)
            for (int t = 0; t < lanes; ++t) {
                const float *from = x + (tile * lanes + t) * columns;
                float *at = to + tile * columns * lanes + t;
                for (int64_t k = 0; k < columns; ++k) at[k * lanes] = from[k];
            }
    });
    return to;
}

void add(const float *x, int64_t n, int64_t columns, const int32_t *starts, const uint16_t *at, const float *values,
         int64_t rows, float *out) {
    if (n <= 0 || starts[rows] == 0) return;
    const int64_t tiles = n / lanes, work = 1 + starts[rows] / rows * n;
    const float *lying = turned(x, tiles, columns);
    parallel(rows, 1 + least_work / work, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int32_t first = starts[row], last = starts[row + 1];
            if (first == last) continue;
            for (int64_t tile = 0; tile < tiles; ++tile) {
                Floats sums = zero();
                for (int32_t i = first; i < last; ++i)
                    sums = fma(set(values[i]), load(lying + (tile * columns + at[i]) * lanes), sums);
                float each[lanes];
                store(each, sums);
                for (int t = 0; t < lanes; ++t) out[(tile * lanes + t) * rows + row] += each[t];
            }
            for (int64_t t = tiles * lanes; t < n; ++t) {
                float sum = 0.0f;
                for (int32_t i = first; i < last; ++i) sum = fused(values[i], x[t * columns + at[i]], sum);
                out[t * rows + row] += sum;
            }
        }
    });
}

void gather(const float *x, int64_t n, int64_t columns, const int32_t *at, int64_t count, float *out) {
    if (n <= 0 || count <= 0) return;
    parallel(n, 1 + least_work / count, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            for (int64_t k = 0; k < count; ++k) out[t * count + k] = x[t * columns + at[k]];
    });
}

}  // namespace

HAVERSACK_TABLE(OutlierKernels, outliers) = {add, gather};

}  // namespace haversack::HAVERSACK_TARGET
