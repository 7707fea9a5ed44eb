// Planes of nested matrices without Python: against a plain computation, and bit for bit over tokens and threads.
#include "nested.h"

#include <cstring>

#include "base/pool.h"
#include "tests/check.h"

using namespace haversack;
using tests::Random;

HAVERSACK_TEST(a_plane_is_added_and_its_bits_stay) {
    Random random(3);
    const int64_t rows = 83, columns = 150, group = 64, n = 11;
    for (const int bits : {1, 2, 5})
        for (const bool base : {true, false}) {
            if (!base && bits > 1) continue;
            NestedPlane plane = {nullptr, rows, columns, group, bits, base};
            std::vector<uint8_t> data(static_cast<size_t>(plane.bytes()));
            std::vector<double> dense(static_cast<size_t>(rows * columns));
            plane.data = data.data();
            uint8_t *at = data.data();
            for (int64_t block = 0; block < plane.blocks(); ++block)
                for (int64_t g = 0; g < plane.groups(); ++g) {
                    const int64_t first = g * group, count = columns - first < group ? columns - first : group;
                    std::vector<int> codes(static_cast<size_t>(16 * count));
                    for (int bit = 0; bit < bits; ++bit)
                        for (int64_t k = 0; k < count; ++k) {
                            const uint16_t mask = static_cast<uint16_t>(random.below(65536));
                            std::memcpy(at, &mask, 2);
                            at += 2;
                            for (int r = 0; r < 16; ++r) codes[static_cast<size_t>(r * count + k)] |= (mask >> r & 1) << bit;
                        }
                    const uint16_t half = 0x3800, two = 0x4000;  // 0.5 and 2
                    for (int r = 0; r < 16; ++r) std::memcpy(at + 2 * r, &half, 2);
                    at += 32;
                    if (base) {
                        for (int r = 0; r < 16; ++r) std::memcpy(at + 2 * r, &two, 2);
                        at += 32;
                    }
                    for (int64_t r = 0; r < 16 && block * 16 + r < rows; ++r)
                        for (int64_t k = 0; k < count; ++k) {
                            const int code = codes[static_cast<size_t>(r * count + k)];
                            dense[static_cast<size_t>((block * 16 + r) * columns + first + k)] =
                                0.5 * (base ? code - 2 : 2 * code - 1);
                        }
                }
            std::vector<float> x(static_cast<size_t>(n * columns)), before(static_cast<size_t>(n * rows)), whole, part;
            for (float &value : x) value = random.normal();
            for (float &value : before) value = random.normal();
            const auto run = [&](int64_t tokens, std::vector<float> &out) {
                out = before;
                nested().add(plane, x.data(), tokens, out.data());
            };
            set_threads(1);
            run(n, whole);
            for (const int threads : {1, 3})
                for (const int64_t tokens : {1, 2, 3, 4, 5, 11}) {
                    set_threads(threads);
                    run(tokens, part);
                    CHECK(std::memcmp(part.data(), whole.data(), static_cast<size_t>(tokens * rows) * sizeof(float)) == 0);
                }
            set_threads(2);
            for (int64_t t = 0; t < n; ++t)
                for (int64_t row = 0; row < rows; ++row) {
                    double sum = before[static_cast<size_t>(t * rows + row)];
                    for (int64_t k = 0; k < columns; ++k)
                        sum += dense[static_cast<size_t>(row * columns + k)] * x[static_cast<size_t>(t * columns + k)];
                    CHECK_NEAR(whole[static_cast<size_t>(t * rows + row)], sum, 2e-4);
                }
        }
}
