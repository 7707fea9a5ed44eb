// Shadows without Python: against a plain computation, and bit for bit over tokens and threads.
#include "shadow.h"

#include <cstring>

#include "base/pool.h"
#include "tests/check.h"

using namespace haversack;
using tests::Random;

namespace {

float clip(float r) { return r < -128.0f ? -128.0f : r > 127.0f ? 127.0f : r; }

}  // namespace

HAVERSACK_TEST(what_static_inputs_miss_is_added_and_bits_stay) {
    Random random(5);
    const int64_t rows = 37, columns = 90, n = 21;
    const float scale = 0.02f, weight_scale = 0.01f, out_scale = 0.05f;
    Weights weights = {nullptr, rows, columns, int8_columns, Kind::int8};
    std::vector<uint8_t> packed(static_cast<size_t>(weights.bytes()), 128);
    std::vector<int> codes(static_cast<size_t>(rows * columns));
    const int64_t stride = weights.block_bytes();
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t k = 0; k < columns; ++k) {
            const int code = random.below(255) - 127;
            codes[static_cast<size_t>(row * columns + k)] = code;
            packed[static_cast<size_t>(row / 16 * stride + k / 4 * 64 + row % 16 * 4 + k % 4)] =
                static_cast<uint8_t>(code + 128);
        }
    for (int64_t block = 0; block < weights.blocks(); ++block)
        for (int i = 0; i < 16; ++i)
            std::memcpy(&packed[static_cast<size_t>((block + 1) * stride - 64 + 4 * i)], &weight_scale, 4);
    weights.data = packed.data();
    std::vector<int32_t> places(static_cast<size_t>(columns), -1);
    std::vector<int8_t> hot(static_cast<size_t>(2 * rows));
    for (int32_t which = 0; which < 2; ++which) {
        const int64_t k = 3 + 8 * which;
        places[static_cast<size_t>(k)] = which;
        for (int64_t row = 0; row < rows; ++row)
            hot[static_cast<size_t>(which * rows + row)] = static_cast<int8_t>(codes[static_cast<size_t>(row * columns + k)]);
    }
    std::vector<float> x(static_cast<size_t>(n * columns)), bias(static_cast<size_t>(rows)),
        before(static_cast<size_t>(n * rows));
    for (size_t i = 0; i < x.size(); ++i) x[i] = random.normal() * (i % 90 == 3 || i % 90 == 11 || i % 90 == 60 ? 9.0f : 1.0f);
    for (float &value : bias) value = random.normal();
    for (float &value : before) value = random.normal();
    std::vector<float> y(before.size());
    const Product product = {weights, y.data(), nullptr};
    matmul().products(x.data(), n, &product, 1, Activations::int8_static, {scale, 0});
    for (const bool rounds : {false, true}) {
        const Shadow all = {weights, hot.data(), places.data(), scale, true, rounds ? out_scale : 0.0f, true};
        const auto run = [&](int64_t tokens, std::vector<float> &out) {
            out = before;
            shadow().finish(all, x.data(), tokens, y.data(), out.data(), out.data(), bias.data());
        };
        std::vector<float> whole, part;
        set_threads(1);
        run(n, whole);
        for (const int threads : {1, 3})
            for (const int64_t tokens : {1, 2, 7, 21}) {
                set_threads(threads);
                run(tokens, part);
                CHECK(std::memcmp(part.data(), whole.data(), static_cast<size_t>(tokens * rows) * sizeof(float)) == 0);
            }
        set_threads(2);
        for (int64_t t = 0; t < n; ++t)
            for (int64_t row = 0; row < rows; ++row) {
                double exact = 0, inside = 0;
                for (int64_t k = 0; k < columns; ++k) {
                    const float r = std::nearbyintf(x[static_cast<size_t>(t * columns + k)] * (1.0f / scale));
                    exact += double(r) * codes[static_cast<size_t>(row * columns + k)];
                    inside += double(clip(r)) * codes[static_cast<size_t>(row * columns + k)];
                }
                const double unit = double(scale) * weight_scale;
                double wanted = exact * unit;
                if (rounds) {
                    const double r = std::nearbyint(inside * unit / out_scale);
                    const bool end = r >= 127 || r <= -128;
                    wanted = end ? std::nearbyint(wanted / out_scale) * out_scale : r * out_scale + (exact - inside) * unit;
                }
                wanted += before[static_cast<size_t>(t * rows + row)] + bias[static_cast<size_t>(row)];
                // A sum on the border of two steps may fall to either.
                CHECK_NEAR(whole[static_cast<size_t>(t * rows + row)], wanted, rounds ? 1.01 * out_scale : 1e-3);
            }
    }
}
