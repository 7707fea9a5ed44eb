// Attention over chosen entries without Python: bit for bit that over all entries when all are chosen, and blind to the others.
#include "base/chosen.h"

#include <cstring>

#include "base/pool.h"
#include "tests/check.h"

using namespace haversack;
using tests::Random;

namespace {

constexpr int64_t kv_heads = 2, heads = 6, width = 24, length = 90, n = 40, capacity = length + n + 2;
constexpr int64_t bounds[] = {0, 16, 32, 40};

std::vector<float> normal(Random &random, int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float &value : values) value = random.normal();
    return values;
}

struct Made {
    std::vector<float> keys, values, q;
    Cache cache;
    explicit Made(Random &random)
        : keys(normal(random, kv_heads * capacity * width)), values(normal(random, kv_heads * capacity * width)),
          q(normal(random, n * heads * width)),
          cache{keys.data(), values.data(), nullptr, nullptr, kv_heads, capacity, width, CacheKind::f32} {}
    std::vector<float> attended(const std::vector<int64_t> &entries, const std::vector<int64_t> &offsets,
                                const int64_t *start) {
        std::vector<float> out(q.size());
        const Chosen chosen = {bounds, offsets.data(), 3, entries.data(), 1, length};
        attend_chosen(cache, {q.data(), out.data(), n, heads, length, n, start, nullptr, 0.2f, 7.0f}, chosen);
        return out;
    }
};

bool same_bits(const std::vector<float> &a, const std::vector<float> &b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

HAVERSACK_TEST(everything_chosen_has_the_bits_of_attention) {
    Random random(11);
    Made made(random);
    std::vector<int64_t> entries, offsets = {0}, start;
    for (int b = 0; b < 3; ++b) {
        for (int64_t e = 0; e < length + bounds[b]; ++e) entries.push_back(e);
        offsets.push_back(static_cast<int64_t>(entries.size()));
    }
    for (int64_t i = 0; i < n; ++i) start.push_back(length + i - 50);
    const int before = threads();
    for (const int64_t *from : {static_cast<const int64_t *>(nullptr), static_cast<const int64_t *>(start.data())})
        for (const int count : {1, 2, 3}) {
            set_threads(count);
            std::vector<float> whole(made.q.size());
            attend().attention(made.cache, {made.q.data(), whole.data(), n, heads, length, n, from, nullptr, 0.2f, 7.0f});
            CHECK(same_bits(made.attended(entries, offsets, from), whole));
        }
    set_threads(before);
}

HAVERSACK_TEST(what_was_not_chosen_is_not_read) {
    Random random(12);
    Made made(random);
    std::vector<int64_t> entries, offsets = {0};
    for (int b = 0; b < 3; ++b) {
        for (int64_t e = 1; e < length; e += 3) entries.push_back(e);
        offsets.push_back(static_cast<int64_t>(entries.size()));
    }
    const std::vector<float> before = made.attended(entries, offsets, nullptr);
    for (int64_t head = 0; head < kv_heads; ++head)
        for (int64_t e = 0; e < length; ++e)
            for (int64_t i = 0; e % 3 != 1 && i < width; ++i)
                made.keys[static_cast<size_t>((head * capacity + e) * width + i)] =
                    made.values[static_cast<size_t>((head * capacity + e) * width + i)] = __builtin_nanf("");
    CHECK(same_bits(made.attended(entries, offsets, nullptr), before));
}
