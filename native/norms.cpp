#include "norms.h"

#include "base/pool.h"
#include "rows.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

constexpr int64_t least_work = 32768;  // numbers that are worth handing to a thread

void rms_norm(const float *x, const float *weight, float eps, float offset, float *out, int64_t rows, int64_t width) {
    parallel(rows, 1 + least_work / width, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) rms_norm_row(x + r * width, weight, eps, offset, out + r * width, width);
    });
}

void layer_norm_row(const float *x, const float *weight, const float *bias, float eps, float *out, int64_t width) {
    const float size = static_cast<float>(width);
    const Floats mean = set(fixed_sum(width, [&](int64_t i, int64_t n) { return load_n(x + i, n); }) / size);
    float mean_tail[lanes];  // for a last vector that is not full: lanes behind the row must contribute 0
    store(mean_tail, mean);
    const float variance = fixed_sum(width,
                                     [&](int64_t i, int64_t n) {
                                         const Floats off = load_n(x + i, n) - load_n(mean_tail, n);
                                         return off * off;
                                     }) /
                           size;
    const Floats factor = set(1.0f / __builtin_sqrtf(variance + eps));
    sixteens(width, [&](int64_t i, int64_t n) {
        const Floats scaled = (load_n(x + i, n) - mean) * factor * load_n(weight + i, n);
        store_n(out + i, bias ? scaled + load_n(bias + i, n) : scaled, n);
    });
}

void layer_norm(const float *x, const float *weight, const float *bias, float eps, float *out, int64_t rows, int64_t width) {
    parallel(rows, 1 + least_work / width, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) layer_norm_row(x + r * width, weight, bias, eps, out + r * width, width);
    });
}

}  // namespace

HAVERSACK_TABLE(NormKernels, norms) = {rms_norm, layer_norm};

}  // namespace haversack::HAVERSACK_TARGET
