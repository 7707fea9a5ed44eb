// Routing and the rows that a gate left, without Python: against plain computations, and row by row.
#include "routing.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/pool.h"
#include "neurons.h"
#include "tests/check.h"

using namespace haversack;
using tests::Random;

HAVERSACK_TEST(a_router_takes_the_largest_and_shares_them_out) {
    Random random(3);
    const int64_t n = 9, experts = 37, top = 5;
    std::vector<float> logits(static_cast<size_t>(n * experts)), shares(static_cast<size_t>(n * top));
    std::vector<int32_t> choice(static_cast<size_t>(n * top));
    for (float &value : logits) value = static_cast<float>(random.below(40)) / 8.0f;  // some are equal
    for (const bool sigmoid : {false, true})
        for (const bool normalized : {false, true}) {
            routing().route({logits.data(), n, experts, top, sigmoid, false, normalized, choice.data(), shares.data()});
            for (int64_t row = 0; row < n; ++row) {
                const float *own = logits.data() + row * experts;
                std::vector<int32_t> order(static_cast<size_t>(experts));
                std::iota(order.begin(), order.end(), 0);
                std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return own[a] > own[b]; });
                double all = 0, sum = 0, score[top];
                for (int64_t i = 0; i < experts; ++i) all += std::exp(double(own[i]));
                for (int64_t rank = 0; rank < top; ++rank) {
                    const int32_t expert = order[static_cast<size_t>(rank)];
                    CHECK(choice[static_cast<size_t>(row * top + rank)] == expert);
                    const double power = std::exp(double(own[expert]));
                    score[rank] = sigmoid ? power / (1 + power) : power / all;
                    sum += score[rank];
                }
                for (int64_t rank = 0; rank < top; ++rank)
                    CHECK_NEAR(shares[static_cast<size_t>(row * top + rank)], normalized ? score[rank] / sum : score[rank],
                               1e-6);
            }
        }
}

HAVERSACK_TEST(rows_behind_a_closed_gate_are_not_read) {
    Random random(5);
    const int64_t n = 7, rows = 23, columns = 2070;
    std::vector<float> matrix(static_cast<size_t>(rows * columns)), x(static_cast<size_t>(n * columns));
    std::vector<float> gate(static_cast<size_t>(n * rows));
    for (float &value : matrix) value = static_cast<float>(random.below(9) - 4);
    for (float &value : x) value = static_cast<float>(random.below(5) - 2);
    for (float &value : gate) value = random.below(3) == 0 ? 2.0f : 0.0f;
    // Columns go by blocks of sparse_block, in a block row after row.
    std::vector<float> stored;
    for (int64_t first = 0; first < columns; first += sparse_block)
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t k = first; k < std::min(columns, first + sparse_block); ++k)
                stored.push_back(matrix[static_cast<size_t>(row * columns + k)]);
    const Channels channels = {reinterpret_cast<const uint8_t *>(stored.data()), columns, rows, 0, Kind::f32};
    for (const int threads : {1, 3})
        for (const int64_t tokens : {int64_t(1), int64_t(3), n}) {
            set_threads(threads);
            std::vector<float> out(gate);
            neurons().gated({channels, x.data(), tokens, out.data(), out.data()});
            for (int64_t t = 0; t < tokens; ++t)
                for (int64_t row = 0; row < rows; ++row) {
                    double sum = 0;
                    for (int64_t k = 0; k < columns; ++k)
                        sum += double(matrix[static_cast<size_t>(row * columns + k)]) * x[static_cast<size_t>(t * columns + k)];
                    const size_t place = static_cast<size_t>(t * rows + row);
                    CHECK(out[place] == (gate[place] != 0.0f ? static_cast<float>(2 * sum) : 0.0f));
                }
        }
    set_threads(2);
}
