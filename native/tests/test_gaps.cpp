// Features of gaps without Python: against a plain computation, and bit for bit over calls and threads.
#include "gaps.h"

#include <cmath>
#include <cstring>

#include "base/pool.h"
#include "tests/check.h"

using namespace haversack;
using tests::Random;

namespace {

// Features of one gap in doubles; `parts` begins with its first key.
std::vector<double> plain(const Gaps &call, const float *parts) {
    const int64_t span = 2 * call.window, c = call.channels, width = c / call.heads, row = (2 + call.heads) * c;
    std::vector<double> sides(static_cast<size_t>(2 * c), 0.0), found;
    for (int64_t r = 0; r < span; ++r) {
        std::vector<double> seen(call.bias, call.bias + c);
        for (int64_t head = 0; head < call.heads; ++head) {
            std::vector<double> powers;
            double total = 0;
            for (int64_t j = 0; j < span; ++j) {
                double score = 0;
                for (int64_t d = head * width; d < (head + 1) * width; ++d)
                    score += double(parts[r * row + d]) * parts[j * row + c + d];
                powers.push_back(std::exp(score));
                total += powers.back();
            }
            for (int64_t j = 0; j < span; ++j)
                for (int64_t i = 0; i < c; ++i)
                    seen[static_cast<size_t>(i)] +=
                        powers[static_cast<size_t>(j)] / total * parts[j * row + (2 + head) * c + i];
        }
        double mean = 0, variance = 0;
        for (const double x : seen) mean += x / double(c);
        for (const double x : seen) variance += (x - mean) * (x - mean) / double(c);
        for (int64_t i = 0; i < c; ++i) {
            const double normal = (seen[static_cast<size_t>(i)] - mean) / std::sqrt(variance + call.eps);
            sides[static_cast<size_t>(r / call.window * c + i)] +=
                (normal * call.weight[i] + call.shift[i]) / double(call.window);
        }
    }
    double product = 0, left = 0, right = 0;
    for (int64_t i = 0; i < 4 * c; ++i) {
        const double l = sides[static_cast<size_t>(i % c)], r = sides[static_cast<size_t>(c + i % c)];
        found.push_back(i < c ? l : i < 2 * c ? r : i < 3 * c ? std::fabs(l - r) : l * r);
        if (i < c) product += l * r, left += l * l, right += r * r;
    }
    found.push_back(product / std::fmax(std::sqrt(left * right), 1e-8));
    return found;
}

}  // namespace

HAVERSACK_TEST(features_of_gaps_equal_their_definition_and_their_bits_stay) {
    Random random(23);
    for (const int64_t window : {1, 3, 4, 9})
        for (const int64_t channels : {4, 20, 33, 64}) {
            const int64_t heads = channels % 4 ? 3 : 4, most = 45, row = (2 + heads) * channels, width = 4 * channels + 9;
            std::vector<float> parts(static_cast<size_t>((most + 2 * window - 1) * row)), norm;
            for (float &value : parts) value = random.normal();
            for (int64_t i = 0; i < 3 * channels; ++i) norm.push_back(random.normal());
            const auto run = [&](int64_t first, int64_t count, std::vector<float> &out) {
                out.assign(static_cast<size_t>(count * width), 9.0f);
                const Gaps call = {
                    parts.data() + first * row, count, channels,   heads, window, norm.data(), norm.data() + channels,
                    norm.data() + 2 * channels, 1e-5f, out.data(), width};
                gaps().features(call);
                return call;
            };
            std::vector<float> whole, part;
            set_threads(1);
            const Gaps call = run(0, most, whole);
            for (int64_t gap = 0; gap < most; ++gap) {
                const std::vector<double> wanted = plain(call, parts.data() + gap * row);
                for (int64_t i = 0; i < width; ++i)
                    CHECK_NEAR(whole[static_cast<size_t>(gap * width + i)],
                               i < 4 * channels + 1 ? wanted[static_cast<size_t>(i)] : 0.0, 2e-4);
            }
            for (const int threads : {1, 3})
                for (const int64_t count : {1, 2, 15, 16, 17, 40}) {
                    set_threads(threads);
                    run(3, count, part);
                    CHECK(std::memcmp(part.data(), whole.data() + 3 * width, part.size() * sizeof(float)) == 0);
                }
        }
    set_threads(2);
}
