// Pixels without Python: against plain loops, and bit for bit over threads.
#include "pixels.h"

#include <cmath>
#include <cstring>

#include "base/pool.h"
#include "tests/check.h"

using namespace haversack;
using tests::Random;

HAVERSACK_TEST(products_with_patches_are_those_of_plain_loops) {
    Random random(3);
    for (const int64_t patch : {1, 2, 5, 8, 32}) {
        const int64_t height = patch * 3, width = patch * 4, channels = 6, whole = patch * patch * 3;
        std::vector<uint8_t> picture(static_cast<size_t>(height * width * 3));
        for (uint8_t &byte : picture) byte = static_cast<uint8_t>(random.below(256));
        std::vector<float> filters(static_cast<size_t>(channels * whole)), bias(static_cast<size_t>(channels));
        for (float &value : filters) value = random.normal() / 255.0f;
        for (float &value : bias) value = random.normal();
        std::vector<float> alone(static_cast<size_t>(channels * 12)), shared(alone.size());
        PatchCall call = {picture.data(), height, width, patch, filters.data(), bias.data(), channels, alone.data()};
        set_threads(1);
        pixels().patch_products(call);
        set_threads(3);
        call.out = shared.data();
        pixels().patch_products(call);
        CHECK(std::memcmp(alone.data(), shared.data(), alone.size() * sizeof(float)) == 0);
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t y = 0; y < 3; ++y)
                for (int64_t x = 0; x < 4; ++x) {
                    double expected = bias[static_cast<size_t>(c)];
                    for (int64_t i = 0; i < patch; ++i)
                        for (int64_t k = 0; k < patch * 3; ++k)
                            expected += static_cast<double>(filters[static_cast<size_t>(c * whole + i * patch * 3 + k)]) *
                                        picture[static_cast<size_t>(((y * patch + i) * width + x * patch) * 3 + k)];
                    CHECK(std::fabs(alone[static_cast<size_t>((c * 3 + y) * 4 + x)] - expected) <
                          1e-3 * (1 + std::fabs(expected)));
                }
    }
}

HAVERSACK_TEST(mixed_colours_do_not_depend_on_threads) {
    Random random(4);
    const int64_t height = 61, width = 75;
    std::vector<uint8_t> picture(static_cast<size_t>(height * width * 3)), alone(picture.size()), shared(picture.size());
    for (uint8_t &byte : picture) byte = static_cast<uint8_t>(random.below(256));
    std::vector<float> table(3 * 256), weights(81);
    for (float &value : table) value = 50 * random.normal();
    for (float &value : weights) value = random.normal() / 3;
    const float bias[3] = {0, 1, 2}, offset[3] = {128, 128, 128};
    ColourCall call = {picture.data(), height, width, table.data(), weights.data(), bias, nullptr, offset, alone.data()};
    set_threads(1);
    pixels().mix_colours(call);
    set_threads(3);
    call.out = shared.data();
    pixels().mix_colours(call);
    CHECK(alone == shared);
}
