// Choices of keys without Python: scores against a plain computation, choices against a sort of tokens.
#include "base/chunks.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/pool.h"
#include "tests/check.h"

using namespace haversack;
using tests::Random;

namespace {

constexpr int64_t heads = 4, key_heads = 2, width = 20, start = 70, n = 50, total = start + n, blocks = 3;
constexpr int64_t bounds[] = {0, 16, 32, 50};
constexpr int64_t borders[] = {0, 3, 20, 21, 40, 75, 90, 119, 130};
constexpr int64_t chunks = 8;

std::vector<float> normal(Random &random, int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float &value : values) value = random.normal();
    return values;
}

double plain_score(const std::vector<float> &q, const std::vector<float> &keys, int64_t block, int64_t set, int64_t sets,
                   int64_t chunk, Pooling pooling) {
    const int64_t begin = borders[chunk], end = std::min(borders[chunk + 1], start + bounds[block + 1]);
    const int64_t first = bounds[block], stop = bounds[block + 1];
    double score = 0;
    for (int64_t d = 0; d < width; ++d) {
        const auto pooled = [&](const std::vector<float> &from, int64_t low, int64_t high, int64_t all, bool by_row) {
            double sum = 0, top = -1e9;
            for (int64_t i = low; i < high; ++i) {
                double mean = 0;
                for (int64_t h = set * all / sets; h < (set + 1) * all / sets; ++h)
                    mean += from[static_cast<size_t>(((by_row ? i * all + h : h * total + i)) * width + d)];
                mean /= double(all / sets);
                sum += mean;
                top = std::max(top, mean);
            }
            const double count = double(high - low);
            if (pooling == Pooling::largest) return top;
            return by_row || pooling == Pooling::root ? sum / std::sqrt(count) : sum / count;
        };
        score += pooled(q, first, stop, heads, true) * pooled(keys, begin, end, key_heads, false);
    }
    return score;
}

}  // namespace

HAVERSACK_TEST(scores_of_chunks_equal_their_definition_and_their_bits_stay) {
    Random random(31);
    const std::vector<float> q = normal(random, n * heads * width), keys = normal(random, key_heads * total * width);
    for (const Pooling pooling : {Pooling::root, Pooling::mean, Pooling::largest})
        for (const int64_t sets : {int64_t(1), key_heads}) {
            const float fill = pooling == Pooling::largest ? -__builtin_inff() : 0.0f;
            std::vector<float> sums(static_cast<size_t>(sets * chunks * width), fill), later = sums;
            std::vector<float> scores(static_cast<size_t>(blocks * sets * chunks)), one(static_cast<size_t>(sets * chunks));
            score_chunks({{bounds, blocks, start},
                          {borders, chunks, sets},
                          q.data(),
                          heads,
                          width,
                          keys.data(),
                          key_heads,
                          total,
                          0,
                          pooling,
                          sums.data(),
                          scores.data()});
            for (int64_t block = 0; block < blocks; ++block)
                for (int64_t set = 0; set < sets; ++set)
                    for (int64_t c = 0; c < chunks; ++c) {
                        const float score = scores[static_cast<size_t>((block * sets + set) * chunks + c)];
                        if (borders[c] >= start + bounds[block + 1])
                            CHECK(score == -__builtin_inff());
                        else
                            CHECK_NEAR(score, plain_score(q, keys, block, set, sets, c, pooling), 1e-4);
                    }
            int64_t done = 0;
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t first = bounds[block], own[] = {0, bounds[block + 1] - first},
                              fresh = start + first + own[1] - done;
                std::vector<float> part;
                for (int64_t head = 0; head < key_heads; ++head) {
                    const float *from = keys.data() + (head * total + done) * width;
                    part.insert(part.end(), from, from + fresh * width);
                }
                score_chunks({{own, 1, start + first},
                              {borders, chunks, sets},
                              q.data() + first * heads * width,
                              heads,
                              width,
                              part.data(),
                              key_heads,
                              fresh,
                              done,
                              pooling,
                              later.data(),
                              one.data()});
                done += fresh;
                CHECK(std::memcmp(one.data(), scores.data() + block * sets * chunks, one.size() * sizeof(float)) == 0);
            }
        }
}

HAVERSACK_TEST(the_best_keys_are_those_of_a_sort) {
    Random random(32);
    const int before = threads();
    for (const int64_t window : {0, 1, 30, 500})
        for (const int64_t budget : {38, 60, 200}) {
            constexpr int64_t sets = 2, sinks = 7, local = 20;
            std::vector<float> scores;
            for (int64_t i = 0; i < blocks * sets * chunks; ++i) scores.push_back(static_cast<float>(random.below(5)) - 2.0f);
            scores[3] = __builtin_nanf("");
            std::vector<int64_t> offsets = {0}, wanted[sets];
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t first = start + bounds[block], end = start + bounds[block + 1];
                const int64_t low = window ? std::max<int64_t>(first - window + 1, 0) : 0;
                const int64_t count = std::min(first - low, budget - (end - first));
                offsets.push_back(offsets.back() + count);
                for (int64_t set = 0; set < sets; ++set) {
                    const float *of = scores.data() + (block * sets + set) * chunks;
                    const auto worth = [&](int64_t token) {
                        const int64_t chunk = std::upper_bound(borders, borders + chunks, token) - borders - 1;
                        const bool always = token < low + sinks || token >= end - local;
                        return always ? 9.0f : std::isnan(of[chunk]) ? -9.0f : of[chunk];
                    };
                    std::vector<int64_t> tokens;
                    for (int64_t token = low; token < first; ++token) tokens.push_back(token);
                    std::stable_sort(tokens.begin(), tokens.end(), [&](int64_t a, int64_t b) { return worth(a) > worth(b); });
                    tokens.resize(static_cast<size_t>(count));
                    std::sort(tokens.begin(), tokens.end());
                    wanted[set].insert(wanted[set].end(), tokens.begin(), tokens.end());
                }
            }
            for (const int count : {1, 3}) {
                set_threads(count);
                std::vector<int64_t> entries(static_cast<size_t>(sets * offsets.back()), -1);
                const BestKeys call = {{bounds, blocks, start}, {borders, chunks, sets}, scores.data(), window, sinks, local,
                                       offsets.data(),          entries.data()};
                CHECK(call.sound());
                best_keys(call);
                for (int64_t set = 0; set < sets; ++set)
                    CHECK(std::equal(wanted[set].begin(), wanted[set].end(), entries.begin() + set * offsets.back()));
            }
        }
    set_threads(before);
}

HAVERSACK_TEST(a_budget_without_room_for_what_is_always_kept_is_not_sound) {
    const float scores[blocks * chunks] = {};
    for (const int64_t less : {0, 1}) {
        int64_t offsets[blocks + 1] = {0};
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t n_here = bounds[block + 1] - bounds[block];
            offsets[block + 1] = offsets[block] + 5 + std::max<int64_t>(20 - n_here, 0) - less;
        }
        const BestKeys call = {{bounds, blocks, start}, {borders, chunks, 1}, scores, 0, 5, 20, offsets, nullptr};
        CHECK(call.sound() == (less == 0));
    }
}
