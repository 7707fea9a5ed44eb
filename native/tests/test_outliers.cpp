// Outliers without Python: against a plain computation, and bit for bit over tokens and threads.
#include "outliers.h"

#include <cstring>

#include "base/pool.h"
#include "tests/check.h"

using namespace haversack;
using tests::Random;

HAVERSACK_TEST(outliers_are_added_and_their_bits_stay) {
    Random random(7);
    const int64_t rows = 37, columns = 90, n = 53;
    std::vector<int32_t> starts = {0};
    std::vector<uint16_t> at;
    std::vector<float> values, x(static_cast<size_t>(n * columns)), before(static_cast<size_t>(n * rows));
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t k = 0; k < columns; ++k)
            if (random.below(9) == 0 && row % 5 != 1) {
                at.push_back(static_cast<uint16_t>(k));
                values.push_back(random.normal());
            }
        starts.push_back(static_cast<int32_t>(at.size()));
    }
    for (float &value : x) value = random.normal();
    for (float &value : before) value = random.normal();
    const auto run = [&](int64_t tokens, std::vector<float> &out) {
        out = before;
        outliers().add(x.data(), tokens, columns, starts.data(), at.data(), values.data(), rows, out.data());
    };
    std::vector<float> whole, part;
    set_threads(1);
    run(n, whole);
    for (const int threads : {1, 3})
        for (const int64_t tokens : {1, 2, 15, 16, 17, 53}) {
            set_threads(threads);
            run(tokens, part);
            CHECK(std::memcmp(part.data(), whole.data(), static_cast<size_t>(tokens * rows) * sizeof(float)) == 0);
        }
    set_threads(2);
    for (int64_t t = 0; t < n; ++t)
        for (int64_t row = 0; row < rows; ++row) {
            double sum = before[static_cast<size_t>(t * rows + row)];
            for (int32_t i = starts[static_cast<size_t>(row)]; i < starts[static_cast<size_t>(row) + 1]; ++i)
                sum +=
                    double(values[static_cast<size_t>(i)]) * x[static_cast<size_t>(t * columns + at[static_cast<size_t>(i)])];
            CHECK_NEAR(whole[static_cast<size_t>(t * rows + row)], sum, 1e-5);
        }
}

HAVERSACK_TEST(gathered_inputs_are_the_ones_named) {
    const float x[] = {1, 2, 3, 4, 5, 6};
    const int32_t at[] = {2, 0};
    float out[4];
    outliers().gather(x, 2, 3, at, 2, out);
    CHECK(out[0] == 3 && out[1] == 1 && out[2] == 6 && out[3] == 4);
}
