// Activations rounded to int8, one scale for every group of inputs.
#include "quantize.h"

#include "simd/simd.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

constexpr float smallest = 1e-30f;  // a group whose largest input is below this counts as all zeros

void token(const float *x, int64_t columns, int64_t group, Fixed fixed, int32_t offset, int8_t *q, float *scales,
           int32_t *corrections) {
    const Ints magnitude_bits = set_ints(0x7fffffff);
    const int64_t groups = (columns + group - 1) / group;
    const float middle = static_cast<float>(fixed.zero), lowest = fixed.scale == 0.0f ? -127.0f : -128.0f - middle;
    const float highest = 127.0f - middle;
    for (int64_t g = 0; g < groups; ++g, x += group, q += group) {
        const int64_t left = columns - g * group, here = left < group ? left : group;
        const auto at = [&](int64_t i) { return here - i >= lanes ? load(x + i) : load_part(x + i, here > i ? here - i : 0); };
        // Magnitudes compare as integers, where infinity and NaN are the largest.
        Ints top = set_ints(0);
        for (int64_t i = 0; i < group; i += lanes) top = larger(top, as_ints(at(i)) & magnitude_bits);
        const int32_t bits = largest(top);
        float size, inverse = 0.0f, scale = 0.0f;
        std::memcpy(&size, &bits, sizeof size);
        const bool finite = bits < 0x7f800000;
        if (!finite) {
            scale = __builtin_nanf("");
        } else if (fixed.scale != 0.0f) {
            scale = fixed.scale;
            inverse = 1.0f / fixed.scale;
        } else if (size >= smallest) {
            scale = size / 127.0f;
            inverse = 127.0f / size;
        }
        int32_t total = 0;
        if (inverse == 0.0f) {
            std::memset(q, 0, static_cast<size_t>(group));
        } else {
            const Floats factor = set(inverse), low = set(lowest), high = set(highest), zero = set(middle);
            Ints sums = set_ints(0);
            for (int64_t i = 0; i < group; i += lanes) {
                const Floats rounded = round(min(max(at(i) * factor, low), high)) + zero;
                store_i8(q + i, rounded);
                sums = sums + to_ints(rounded);
            }
            int32_t each[lanes];
            store_ints(each, sums);
            for (int i = 0; i < lanes; ++i) total += each[i];
        }
        scales[g] = scale;
        corrections[g] = -offset * total;
    }
}

}  // namespace

HAVERSACK_TABLE(QuantizeKernels, quantize) = {token};

}  // namespace haversack::HAVERSACK_TARGET
