// Sampling without Python: filters against sorting, draws against running sums.
#include <algorithm>

#include "sampling.h"
#include "tests/check.h"

using namespace haversack;
using tests::Random;

namespace {

std::vector<float> logits_of(Random &random, int n) {
    std::vector<float> logits(static_cast<size_t>(n));
    for (float &x : logits) x = std::round(random.normal() * 12) / 4;  // many ties
    return logits;
}

std::vector<int> ranked(const std::vector<float> &scores) {
    std::vector<int> order(scores.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return scores[a] > scores[b]; });
    return order;
}

}  // namespace

HAVERSACK_TEST(filters_keep_what_sorting_keeps) {
    Random random(8);
    for (int round = 0; round < 60; ++round) {
        const int n = 1 + random.below(700);
        const auto logits = logits_of(random, n);
        const int64_t top_k = random.below(3) ? 1 + random.below(n) : 0;
        const double top_p = random.below(3) ? 0.05 + 0.0091 * random.below(100) : 1.0;
        const Filters filters = {0.8f, top_k, top_p, 0.0, 1.0f, nullptr, 0, nullptr, 0};
        std::vector<float> got(logits.size()), scores(logits.size());
        CHECK(sampling().filter(logits.data(), n, filters, got.data()));
        for (int i = 0; i < n; ++i) scores[i] = logits[i] / 0.8f;
        auto order = ranked(scores);
        if (top_k) order.resize(static_cast<size_t>(std::min<int64_t>(top_k, n)));
        double total = 0, before = 0;
        for (const int i : order) total += std::exp(double(scores[i]) - scores[order[0]]);
        std::vector<float> wanted(logits.size(), -__builtin_inff());
        bool edge = false;  // a running sum that meets top_p to within a rounding decides nothing
        for (const int i : order) {
            edge = edge || std::fabs(before / total - top_p) < 1e-6;
            if (top_p >= 1 || before < top_p * total) wanted[i] = scores[i];
            before += std::exp(double(scores[i]) - scores[order[0]]);
        }
        CHECK(edge || got == wanted);
        CHECK(sampling().greedy(logits.data(), n) == ranked(logits)[0]);
    }
}

HAVERSACK_TEST(draws_follow_running_sums) {
    Random random(9);
    for (const int n : {1, 5, 64, 1024, 1025, 3000}) {
        const auto logits = logits_of(random, n);
        const float top = *std::max_element(logits.begin(), logits.end());
        double total = 0;
        for (const float x : logits) total += std::exp(double(x) - top);
        const Filters plain = {1.0f, 0, 1.0, 0.0, 1.0f, nullptr, 0, nullptr, 0};
        for (int round = 0; round < 50; ++round) {
            const double number = (random.bits() % 1000000 + 0.5) / 1000000;
            int64_t token = -1;
            double log_probability = 0;
            CHECK(sampling().sample(logits.data(), n, plain, number, &token, &log_probability));
            CHECK(token >= 0 && token < n);
            double below = 0;
            for (int64_t i = 0; i < token; ++i) below += std::exp(double(logits[i]) - top);
            const double own = std::exp(double(logits[token]) - top);
            CHECK(below / total <= number + 1e-6 && number - 1e-6 <= (below + own) / total);
            CHECK_NEAR(log_probability, std::log(own / total), 1e-5);
        }
    }
}

HAVERSACK_TEST(logits_without_probabilities_are_refused) {
    for (const float bad : {__builtin_nanf(""), __builtin_inff(), -__builtin_inff()}) {
        std::vector<float> logits(19, bad < 0 ? bad : 1.0f), out(19);
        logits[17] = bad;
        int64_t token;
        double log_probability;
        const Filters plain = {1.0f, 0, 1.0, 0.0, 1.0f, nullptr, 0, nullptr, 0};
        CHECK(sampling().greedy(logits.data(), 19) == -1);
        CHECK(!sampling().filter(logits.data(), 19, plain, out.data()));
        CHECK(!sampling().sample(logits.data(), 19, plain, 0.5, &token, &log_probability));
    }
}
