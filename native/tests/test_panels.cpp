// Interleaved f32 weights: each output is one chain of fma over its inputs in order, whatever the tile.
#include <cmath>
#include <cstring>
#include <vector>

#include "base/isa.h"
#include "base/pool.h"
#include "matmul.h"
#include "tests/check.h"

using namespace haversack;
using tests::Random;

HAVERSACK_TEST(interleaved_rows_are_one_chain_of_fma) {
    Random random(11);
    const bool fused = active_isa() != Isa::portable;
    const int shapes[][2] = {{1, 1}, {16, 5}, {17, 33}, {70, 257}, {96, 128}};
    for (const auto &shape : shapes) {
        const int64_t rows = shape[0], columns = shape[1], n = 27, blocks = (rows + 15) / 16;
        std::vector<float> x(static_cast<size_t>(n * columns)), w(static_cast<size_t>(blocks * 16 * columns), 0.0f);
        std::vector<float> add(static_cast<size_t>(n * rows)), out(add.size());
        for (float &value : x) value = random.normal();
        for (float &value : add) value = random.normal();
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < columns; ++c) w[size_t((r / 16 * columns + c) * 16 + r % 16)] = random.normal();
        const Weights weights = {reinterpret_cast<const uint8_t *>(w.data()), rows, columns, 0, Kind::f32, true};
        CHECK(weights.bytes() == static_cast<int64_t>(w.size() * 4));
        for (const int threads : {1, 3})
            for (const int64_t tokens : {1, 2, 6, 12, 13, 27}) {
                set_threads(threads);
                const Product product = {weights, out.data(), add.data()};
                matmul().products(x.data(), tokens, &product, 1, Activations::f32, {});
                for (int64_t t = 0; t < tokens; ++t)
                    for (int64_t r = 0; r < rows; ++r) {
                        float chain = 0.0f;
                        for (int64_t c = 0; c < columns; ++c) {
                            const float a = w[size_t((r / 16 * columns + c) * 16 + r % 16)], b = x[size_t(t * columns + c)];
                            chain = fused ? std::fma(a, b, chain) : a * b + chain;
                        }
                        CHECK(out[size_t(t * rows + r)] == chain + add[size_t(t * rows + r)]);
                    }
            }
    }
    set_threads(2);
}
