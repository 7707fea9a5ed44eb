#include "rotary.h"

#include <cmath>

#include "base/pool.h"
#include "rows.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

void table(const int64_t *positions, int64_t n, const double *frequencies, int64_t pairs, double scale, float *cos,
           float *sin) {
    parallel(n, 1 + 512 / (pairs + 1), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            for (int64_t i = 0; i < pairs; ++i) {
                const double angle = static_cast<double>(positions[t]) * frequencies[i];
                cos[t * pairs + i] = static_cast<float>(::cos(angle) * scale);
                sin[t * pairs + i] = static_cast<float>(::sin(angle) * scale);
            }
    });
}

void rope(float *x, const float *cos, const float *sin, int64_t n, int64_t heads, int64_t width, int64_t pairs,
          bool interleaved) {
    parallel(n, 1 + 16384 / (heads * width + 1), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            for (int64_t h = 0; h < heads; ++h)
                rope_row(x + (t * heads + h) * width, cos + t * pairs, sin + t * pairs, pairs, interleaved);
    });
}

}  // namespace

HAVERSACK_TABLE(RotaryKernels, rotary) = {table, rope};

}  // namespace haversack::HAVERSACK_TARGET
