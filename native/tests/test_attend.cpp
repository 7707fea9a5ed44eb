// The cache and attention without Python: against a plain computation in f64, and bit for bit over the number of queries, over
// threads, and between a tree of tokens and its branches.
#include <cstring>

#include "attend.h"
#include "base/pool.h"
#include "cache.h"
#include "tests/check.h"

using namespace haversack;
using tests::Random;

namespace {

constexpr CacheKind kinds[] = {CacheKind::f32, CacheKind::f16, CacheKind::int8};

std::vector<float> normal(Random &random, int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float &value : values) value = random.normal();
    return values;
}

// A cache whose memory is all ones bits (NaN as f32 and f16) until written.
struct Room {
    std::vector<uint8_t> keys, values;
    std::vector<float> key_scales, value_scales;
    Cache cache;

    Room(CacheKind kind, int64_t kv_heads, int64_t capacity, int64_t width) {
        cache = {nullptr, nullptr, nullptr, nullptr, kv_heads, capacity, width, kind};
        const size_t numbers = static_cast<size_t>(kv_heads * capacity);
        keys.assign(numbers * static_cast<size_t>(cache.entry_bytes()), 0xff);
        values = keys;
        key_scales.assign(numbers, __builtin_nanf(""));
        value_scales = key_scales;
        cache.keys = keys.data();
        cache.values = values.data();
        cache.key_scales = key_scales.data();
        cache.value_scales = value_scales.data();
    }
    double number(const std::vector<uint8_t> &stored, const std::vector<float> &scales, int64_t head, int64_t entry,
                  int64_t i) const {
        const int64_t at = head * cache.capacity + entry, index = at * cache.width + i;
        if (cache.kind == CacheKind::int8) return double(static_cast<int8_t>(stored[index])) * scales[at];
        if (cache.kind == CacheKind::f32) {
            float x;
            std::memcpy(&x, stored.data() + 4 * index, 4);
            return x;
        }
        uint16_t h;
        std::memcpy(&h, stored.data() + 2 * index, 2);
        const int exponent = h >> 10 & 31, fraction = h & 1023;
        const double size = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
        return h & 0x8000 ? -size : size;
    }
    double key(int64_t head, int64_t entry, int64_t i) const { return number(keys, key_scales, head, entry, i); }
    double value(int64_t head, int64_t entry, int64_t i) const { return number(values, value_scales, head, entry, i); }
};

bool same_bits(const float *a, const float *b, int64_t count) {
    return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0;
}

struct Case {
    int64_t kv_heads, group, width;
    float softcap;
    int64_t window;
};
const Case cases[] = {{1, 1, 16, 0, 1000}, {2, 3, 20, 5, 1000}, {2, 8, 64, 0, 1000}, {1, 5, 33, 0, 7}, {3, 2, 64, 3, 40}};
constexpr int64_t length = 21, n = 37;

}  // namespace

HAVERSACK_TEST(attention_equals_its_definition_whatever_the_queries) {
    Random random(5);
    for (const CacheKind kind : kinds)
        for (const Case &c : cases) {
            const int64_t heads = c.kv_heads * c.group, row = heads * c.width;
            Room room(kind, c.kv_heads, length + n + 3, c.width);
            const auto k = normal(random, (length + n) * c.kv_heads * c.width),
                       v = normal(random, (length + n) * c.kv_heads * c.width);
            const auto q = normal(random, n * row);
            cache().write(room.cache, 0, k.data(), v.data(), length + n);
            std::vector<int64_t> start(n);
            for (int64_t t = 0; t < n; ++t) start[t] = length + t + 1 > c.window ? length + t + 1 - c.window : 0;
            std::vector<float> whole(q.size()), part(q.size());
            const auto attend_rows = [&](int64_t first, int64_t rows, float *out) {
                const Attention call = {q.data() + first * row, out,     rows,  heads,    length + first, rows,
                                        start.data() + first,   nullptr, 0.25f, c.softcap};
                attend().attention(room.cache, call);
            };
            set_threads(1);
            attend_rows(0, n, whole.data());
            for (const int threads : {1, 2, 5}) {
                set_threads(threads);
                for (const int64_t step : {int64_t(1), int64_t(2), int64_t(7), n}) {
                    for (int64_t t = 0; t < n; t += step) attend_rows(t, n - t < step ? n - t : step, part.data() + t * row);
                    CHECK(same_bits(whole.data(), part.data(), n * row));
                }
            }
            for (int64_t t = 0; t < n; t += 5)
                for (int64_t h = 0; h < heads; ++h) {
                    const int64_t kv = h / c.group, end = length + t + 1;
                    std::vector<double> weights;
                    double largest = -1e300, total = 0;
                    for (int64_t e = start[t]; e < end; ++e) {
                        double score = 0;
                        for (int64_t i = 0; i < c.width; ++i) score += q[t * row + h * c.width + i] * room.key(kv, e, i);
                        score *= 0.25;
                        if (c.softcap != 0) score = c.softcap * std::tanh(score / c.softcap);
                        weights.push_back(score);
                        largest = score > largest ? score : largest;
                    }
                    for (double &weight : weights) total += weight = std::exp(weight - largest);
                    for (int64_t i = 0; i < c.width; ++i) {
                        double sum = 0;
                        for (int64_t e = start[t]; e < end; ++e) sum += weights[e - start[t]] * room.value(kv, e, i);
                        CHECK_NEAR(whole[t * row + h * c.width + i], sum / total, 2e-5);
                    }
                }
        }
    set_threads(2);
}

HAVERSACK_TEST(a_tree_of_tokens_equals_its_branches) {
    Random random(6);
    constexpr int64_t kv_heads = 2, heads = 6, width = 20, nodes = 13, row = heads * width, entry = kv_heads * width;
    for (const CacheKind kind : kinds) {
        const auto k = normal(random, (length + nodes) * entry), v = normal(random, (length + nodes) * entry);
        const auto q = normal(random, nodes * row);
        std::vector<uint8_t> mask(nodes * nodes, 0);
        for (int64_t i = 0; i < nodes; ++i) {
            const int parent = random.below(static_cast<int>(i) + 1) - 1;
            if (parent >= 0) std::memcpy(&mask[i * nodes], &mask[parent * nodes], nodes);
            mask[i * nodes + i] = 1;
        }
        Room room(kind, kv_heads, length + nodes, width);
        cache().write(room.cache, 0, k.data(), v.data(), length + nodes);
        std::vector<float> tree(q.size()), alone(row);
        const Attention call = {q.data(), tree.data(), nodes, heads, length, nodes, nullptr, mask.data(), 0.3f, 0};
        attend().attention(room.cache, call);
        for (int64_t i = 0; i < nodes; ++i) {
            Room branch(kind, kv_heads, length + nodes + 9, width);
            cache().write(branch.cache, 0, k.data(), v.data(), length);
            int64_t held = length;
            for (int64_t j = 0; j < nodes; ++j)
                if (mask[i * nodes + j])
                    cache().write(branch.cache, held++, k.data() + (length + j) * entry, v.data() + (length + j) * entry, 1);
            const Attention one = {q.data() + i * row, alone.data(), 1, heads, held - 1, 1, nullptr, nullptr, 0.3f, 0};
            attend().attention(branch.cache, one);
            CHECK(same_bits(alone.data(), tree.data() + i * row, row));
        }
        // Keeping the last node's path leaves its keys and values behind the prefix.
        std::vector<int64_t> path;
        for (int64_t j = 0; j < nodes; ++j)
            if (mask[(nodes - 1) * nodes + j]) path.push_back(length + j);
        cache().gather(room.cache, length, path.data(), static_cast<int64_t>(path.size()));
        const Attention kept = {q.data() + (nodes - 1) * row,
                                alone.data(),
                                1,
                                heads,
                                length + static_cast<int64_t>(path.size()) - 1,
                                1,
                                nullptr,
                                nullptr,
                                0.3f,
                                0};
        attend().attention(room.cache, kept);
        CHECK(same_bits(alone.data(), tree.data() + (nodes - 1) * row, row));
    }
}

HAVERSACK_TEST(the_fused_write_does_not_depend_on_the_rows) {
    Random random(7);
    constexpr int64_t kv_heads = 2, heads = 4, width = 24, pairs = 10;
    for (const CacheKind kind : kinds) {
        const auto q = normal(random, n * heads * width), k = normal(random, n * kv_heads * width);
        const auto v = normal(random, n * kv_heads * width), table = normal(random, 2 * n * pairs),
                   norm = normal(random, width);
        Room whole(kind, kv_heads, n, width), steps(kind, kv_heads, n, width);
        const auto write = [&](Room &room, std::vector<float> &to_q, std::vector<float> &to_k, int64_t step) {
            for (int64_t t = 0; t < n; t += step) {
                const NewEntries entries = {to_q.data() + t * heads * width,
                                            to_k.data() + t * kv_heads * width,
                                            v.data() + t * kv_heads * width,
                                            n - t < step ? n - t : step,
                                            heads,
                                            table.data() + t * pairs,
                                            table.data() + (n + t) * pairs,
                                            pairs,
                                            false,
                                            norm.data(),
                                            norm.data(),
                                            1e-5f,
                                            0.0f};
                cache().rope_write(room.cache, t, entries);
            }
        };
        auto q1 = q, q2 = q, k1 = k, k2 = k;
        write(whole, q1, k1, n);
        write(steps, q2, k2, 1);
        CHECK(q1 == q2 && k1 == k2 && q1 != q);
        CHECK(whole.keys == steps.keys && whole.values == steps.values);
        if (kind == CacheKind::int8) CHECK(whole.key_scales == steps.key_scales && whole.value_scales == steps.value_scales);
    }
}

HAVERSACK_TEST(attention_adds_what_its_bias_says_of_distances) {
    Random random(9);
    constexpr int64_t heads = 3, width = 20, reach = 6, entries = length + n;
    const auto bias = normal(random, heads * (2 * reach + 1)), q = normal(random, n * heads * width);
    std::vector<int64_t> places(n);
    for (int64_t t = 0; t < n; ++t) places[t] = length + t;
    for (const CacheKind kind : kinds) {
        Room room(kind, heads, entries + 2, width);
        const auto k = normal(random, entries * heads * width), v = normal(random, entries * heads * width);
        cache().write(room.cache, 0, k.data(), v.data(), entries);
        std::vector<float> out(q.size()), one(heads * width);
        Attention call = {q.data(), out.data(), n,           heads, length,       n, nullptr, nullptr,
                          0.5f,     0.0f,       bias.data(), reach, places.data()};
        attend().attention(room.cache, call);
        for (int64_t t = 0; t < n; ++t) {
            const Attention alone = {q.data() + t * heads * width,
                                     one.data(),
                                     1,
                                     heads,
                                     length + t,
                                     1,
                                     nullptr,
                                     nullptr,
                                     0.5f,
                                     0.0f,
                                     bias.data(),
                                     reach,
                                     places.data() + t};
            attend().attention(room.cache, alone);
            CHECK(same_bits(out.data() + t * heads * width, one.data(), heads * width));
            for (int64_t h = 0; h < heads; ++h) {
                std::vector<double> weights(static_cast<size_t>(length + t + 1));
                double total = 0;
                for (int64_t e = 0; e <= length + t; ++e) {
                    double score = 0;
                    for (int64_t i = 0; i < width; ++i) score += q[(t * heads + h) * width + i] * room.key(h, e, i);
                    const int64_t far = e - places[t] < -reach ? -reach : e - places[t];
                    weights[e] = std::exp(0.5 * score + bias[h * (2 * reach + 1) + far + reach]);
                    total += weights[e];
                }
                double expected = 0;
                for (int64_t e = 0; e <= length + t; ++e) expected += weights[e] / total * room.value(h, e, 3);
                CHECK(std::abs(out[(t * heads + h) * width + 3] - expected) < 1e-4);
            }
        }
    }
}
