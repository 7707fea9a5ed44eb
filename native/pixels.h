// What a codec does to the pixels of 8-bit pictures: products with patches, and a small convolution across colours. See
// kernels/pixels.py.
#pragma once
#include <cstdint>

#include "base/isa.h"

namespace haversack {

// out[channel, h / patch, w / patch] = bias + filter . patch, over patches that neither overlap nor leave gaps.
struct PatchCall {
    const uint8_t *picture;  // [height, width, 3], sides multiples of patch
    int64_t height, width, patch;
    const float *filters;  // [channels, patch, patch * 3]
    const float *bias;     // [channels]
    int64_t channels;
    float *out;
};

// Each byte is looked up, then a 3 x 3 convolution over three colours, zeros outside; the result is squashed where asked, and
// rounded to a byte.
struct ColourCall {
    const uint8_t *picture;  // [height, width, 3]
    int64_t height, width;
    const float *table;    // [3, 256]
    const float *weights;  // [3 out, 3 rows, 3 columns, 3 in]
    const float *bias;     // [3]
    const float *squash;   // nullptr, or [3, 3]: size, sigma, gain; x becomes gain * size * x / (sigma + |x|)
    const float *offset;   // [3], added last
    uint8_t *out;          // [height, width, 3]
};

struct PixelKernels {
    void (*patch_products)(const PatchCall &call);
    void (*mix_colours)(const ColourCall &call);
};

}  // namespace haversack

HAVERSACK_FAMILY(haversack::PixelKernels, pixels)
