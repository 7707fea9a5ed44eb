// Threads take strips of patches, or rows. A product is one chain of sums along the patch's rows, 16 lanes wide, added in a
// fixed tree; a mixed colour is one chain over rows, columns and colours of its neighbourhood.
#include "pixels.h"

#include "base/pool.h"
#include "base/scratch.h"
#include "simd/simd.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

constexpr int64_t least_bytes = int64_t(48) << 10;  // of a picture that are worth handing to a thread

template <int C>
HAVERSACK_INLINE void products(const PatchCall &call, const float *strip, int64_t at, int64_t first, float *to, int64_t pitch) {
    const int64_t segment = call.patch * 3, row = call.width * 3, whole = segment * call.patch;
    Floats sums[C];
    for (Floats &one : sums) one = zero();
    for (int64_t y = 0; y < call.patch; ++y) {
        const float *x = strip + y * row + at * segment, *filter = call.filters + first * whole + y * segment;
        int64_t k = 0;
        for (; k + lanes <= segment; k += lanes) {
            const Floats input = load(x + k);
            for (int c = 0; c < C; ++c) sums[c] = fma(load(filter + c * whole + k), input, sums[c]);
        }
        if (k == segment) continue;
        const Floats input = load_part(x + k, segment - k);
        for (int c = 0; c < C; ++c) sums[c] = fma(load_part(filter + c * whole + k, segment - k), input, sums[c]);
    }
    for (int c = 0; c < C; ++c) to[c * pitch] = call.bias[first + c] + sum(sums[c]);
}

void patch_products(const PatchCall &call) {
    const int64_t rows = call.height / call.patch, columns = call.width / call.patch, row = call.width * 3;
    const int64_t bytes = call.patch * row;
    parallel(rows, 1 + least_bytes / bytes, [&](int64_t begin, int64_t end) {
        float *strip = static_cast<float *>(scratch(2, static_cast<size_t>(bytes) * sizeof(float)));
        for (int64_t y = begin; y < end; ++y) {
            const uint8_t *from = call.picture + y * bytes;
            for (int64_t i = 0; i < bytes; ++i) strip[i] = static_cast<float>(from[i]);
            for (int64_t x = 0; x < columns; ++x) {
                float *to = call.out + y * columns + x;
                int64_t c = 0;
                for (; c + 4 <= call.channels; c += 4) products<4>(call, strip, x, c, to + c * rows * columns, rows * columns);
                switch (call.channels - c) {
                case 3: products<3>(call, strip, x, c, to + c * rows * columns, rows * columns); break;
                case 2: products<2>(call, strip, x, c, to + c * rows * columns, rows * columns); break;
                case 1: products<1>(call, strip, x, c, to + c * rows * columns, rows * columns); break;
                default: break;
                }
            }
        }
    });
}

// Row y of the picture, looked up: three lines, one a colour, each with a zero before and `lanes` behind.
void look_up(const ColourCall &call, int64_t y, float *lines, int64_t pitch) {
    if (y < 0 || y >= call.height) {
        std::memset(lines, 0, static_cast<size_t>(3 * pitch) * sizeof(float));
        return;
    }
    const uint8_t *from = call.picture + y * call.width * 3;
    float *const red = lines + 1, *const green = red + pitch, *const blue = green + pitch;
    const float *const t0 = call.table, *const t1 = t0 + 256, *const t2 = t1 + 256;
    for (int64_t x = 0; x < call.width; ++x) {
        red[x] = t0[from[3 * x]];
        green[x] = t1[from[3 * x + 1]];
        blue[x] = t2[from[3 * x + 2]];
    }
    for (int i = 0; i < 3; ++i) {
        float *line = red + i * pitch;
        line[-1] = 0.0f;
        for (int64_t x = call.width; x < pitch - 1; ++x) line[x] = 0.0f;
    }
}

// Sixteen pixels from x on, of row `middle` of three rows of lines.
HAVERSACK_INLINE void mixed(const ColourCall &call, const float *const *lines, int64_t pitch, int64_t x, float (*to)[lanes]) {
    Floats sums[3] = {set(call.bias[0]), set(call.bias[1]), set(call.bias[2])};
    for (int dy = 0; dy < 3; ++dy)
        for (int dx = 0; dx < 3; ++dx)
            for (int i = 0; i < 3; ++i) {
                const Floats input = load(lines[dy] + i * pitch + x + dx);
                const float *w = call.weights + (dy * 3 + dx) * 3 + i;
                for (int o = 0; o < 3; ++o) sums[o] = fma(set(w[o * 27]), input, sums[o]);
            }
    for (int o = 0; o < 3; ++o) {
        Floats value = sums[o];
        if (call.squash) {
            const float *s = call.squash + 3 * o;
            value = set(s[2] * s[0]) * value / (set(s[1]) + abs(value));
        }
        store(to[o], round(min(max(value + set(call.offset[o]), zero()), set(255.0f))));
    }
}

void mix_colours(const ColourCall &call) {
    const int64_t pitch = (call.width + lanes - 1) / lanes * lanes + lanes;
    parallel(call.height, 1 + least_bytes / (call.width * 3), [&](int64_t begin, int64_t end) {
        float *room = static_cast<float *>(scratch(2, static_cast<size_t>(9 * pitch) * sizeof(float)));
        for (int64_t y = begin - 1; y <= begin; ++y) look_up(call, y, room + (y + 3) % 3 * 3 * pitch, pitch);
        for (int64_t y = begin; y < end; ++y) {
            look_up(call, y + 1, room + (y + 4) % 3 * 3 * pitch, pitch);
            const float *const rows[3] = {room + (y + 2) % 3 * 3 * pitch, room + y % 3 * 3 * pitch,
                                          room + (y + 1) % 3 * 3 * pitch};
            uint8_t *out = call.out + y * call.width * 3;
            for (int64_t x = 0; x < call.width; x += lanes) {
                float found[3][lanes];
                mixed(call, rows, pitch, x, found);
                const int64_t count = smaller_of<int64_t>(call.width - x, lanes);
                for (int64_t i = 0; i < count; ++i)
                    for (int o = 0; o < 3; ++o) out[(x + i) * 3 + o] = static_cast<uint8_t>(found[o][i]);
            }
        }
    });
}

}  // namespace

HAVERSACK_TABLE(PixelKernels, pixels) = {patch_products, mix_colours};

}  // namespace haversack::HAVERSACK_TARGET
