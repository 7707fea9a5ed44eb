// See chunks.h. Sums run in the order of entries and of numbers; a block's bits are those of a call with it alone.
#include "base/chunks.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/pool.h"
#include "base/scratch.h"

namespace haversack {
namespace {

// ---- scores ----------------------------------------------------------------------------------------------------------------

// out[width] = the mean of `count` rows, `stride` numbers apart.
void mean_of(const float *rows, int64_t stride, int64_t count, int64_t width, float *out) {
    std::memcpy(out, rows, static_cast<size_t>(width) * sizeof(float));
    if (count == 1) return;
    for (int64_t i = 1; i < count; ++i)
        for (int64_t d = 0; d < width; ++d) out[d] += rows[i * stride + d];
    for (int64_t d = 0; d < width; ++d) out[d] /= static_cast<float>(count);
}

void take_in(const float *row, int64_t width, Pooling pooling, float *into) {
    if (pooling == Pooling::largest)
        for (int64_t d = 0; d < width; ++d) into[d] = row[d] > into[d] ? row[d] : into[d];
    else
        for (int64_t d = 0; d < width; ++d) into[d] += row[d];
}

// The product of two vectors: number d goes to accumulator d % 16, then one fixed tree.
float product(const float *a, const float *b, int64_t width) {
    float sums[16] = {};
    int64_t d = 0;
    for (; d + 16 <= width; d += 16)
        for (int i = 0; i < 16; ++i) sums[i] += a[d + i] * b[d + i];
    for (int i = 0; d < width; ++i, ++d) sums[i] += a[d] * b[d];
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
}

// Adds entries first .. end - 1 to the sums of their chunks; `chunk` is that of the first, and becomes that of the last.
void pool_entries(const ChunkScores &call, int64_t first, int64_t end, int64_t &chunk, float *row) {
    const int64_t width = call.width, sets = call.chunks.sets, joined = call.key_heads / sets;
    for (int64_t entry = first; entry < end; ++entry) {
        while (call.chunks.borders[chunk + 1] <= entry) ++chunk;
        for (int64_t set = 0; set < sets; ++set) {
            const float *key = call.keys + (set * joined * call.fresh + entry - call.done) * width;
            mean_of(key, call.fresh * width, joined, width, row);
            take_in(row, width, call.pooling, call.sums + (set * call.chunks.count + chunk) * width);
        }
    }
}

// query[width]: the block's queries under the heads of a set, averaged over these and pooled over the block.
void pool_queries(const ChunkScores &call, int64_t first, int64_t end, int64_t set, float *query, float *row) {
    const int64_t width = call.width, joined = call.heads / call.chunks.sets;
    const float n = static_cast<float>(end - first);
    for (int64_t i = first; i < end; ++i) {
        mean_of(call.q + (i * call.heads + set * joined) * width, width, joined, width, row);
        if (i == first)
            std::memcpy(query, row, static_cast<size_t>(width) * sizeof(float));
        else
            take_in(row, width, call.pooling, query);
    }
    if (call.pooling == Pooling::largest) return;
    for (int64_t d = 0; d < width; ++d) query[d] = query[d] / n * std::sqrt(n);
}

float divisor(Pooling pooling, int64_t length) {
    const float n = static_cast<float>(length);
    return pooling == Pooling::largest ? 1.0f : pooling == Pooling::mean ? n : std::sqrt(n);
}

// ---- keys ------------------------------------------------------------------------------------------------------------------

// The keys low .. first - 1 before a block; those of begin .. stop - 1 are not always kept.
struct Choice {
    int64_t low, first, begin, stop;
    int64_t kept() const { return (begin - low) + (first - stop); }
};

Choice choice_of(const BestKeys &call, int64_t block) {
    Choice found;
    found.first = call.blocks.start + call.blocks.bounds[block];
    const int64_t end = call.blocks.start + call.blocks.bounds[block + 1];
    found.low = call.window ? std::max<int64_t>(found.first - call.window + 1, 0) : 0;
    found.begin = std::min(found.low + call.sinks, found.first);
    found.stop = std::max(std::min(end - call.local, found.first), found.begin);
    return found;
}

// Ascends where a score descends; NaN comes last, and 0 and -0 are equal.
uint32_t place(float score) {
    if (std::isnan(score)) return UINT32_MAX;
    score += 0.0f;
    uint32_t bits;
    std::memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000 ? bits : ~bits & 0x7fffffff;
}

// The keys of a block in a set, ascending; `ranked` and `taken` have room for every chunk.
void keys_of(const BestKeys &call, int64_t block, int64_t set, uint64_t *ranked, int64_t *taken) {
    const Choice choice = choice_of(call, block);
    const int64_t count = call.chunks.count, total = call.offsets[call.blocks.count];
    const float *scores = call.scores + (block * call.chunks.sets + set) * count;
    const int64_t *borders = call.chunks.borders;
    const auto begin_of = [&](int64_t chunk) { return std::max(borders[chunk], choice.begin); };
    const auto free_of = [&](int64_t chunk) { return std::min(borders[chunk + 1], choice.stop) - begin_of(chunk); };
    int64_t left = call.offsets[block + 1] - call.offsets[block] - choice.kept();
    const int64_t first = std::upper_bound(borders, borders + count, choice.begin) - borders - 1;
    const int64_t last = choice.begin < choice.stop ? std::lower_bound(borders, borders + count, choice.stop) - borders : first;
    uint64_t *end = ranked, *begin = ranked;
    for (int64_t chunk = first; chunk < last; ++chunk) {
        *end++ = static_cast<uint64_t>(place(scores[chunk])) << 32 | static_cast<uint64_t>(chunk);
        taken[chunk] = 0;
    }
    // The better half is taken whole where it fits, and the search goes on in the half that the budget ends in.
    const auto chunk_of = [](uint64_t one) { return static_cast<int64_t>(one & UINT32_MAX); };
    while (end - begin > 1) {
        uint64_t *const middle = begin + (end - begin) / 2;
        std::nth_element(begin, middle, end);
        int64_t held = 0;
        for (const uint64_t *one = begin; one < middle; ++one) held += free_of(chunk_of(*one));
        if (held > left) {
            end = middle;
            continue;
        }
        for (; begin < middle; ++begin) taken[chunk_of(*begin)] = free_of(chunk_of(*begin));
        left -= held;
    }
    if (begin < end) taken[chunk_of(*begin)] = std::min(free_of(chunk_of(*begin)), left);
    int64_t *to = call.entries + set * total + call.offsets[block];
    const auto give = [&](int64_t from, int64_t n) {
        for (int64_t i = 0; i < n; ++i) *to++ = from + i;
    };
    give(choice.low, choice.begin - choice.low);
    for (int64_t chunk = first; chunk < last; ++chunk) give(begin_of(chunk), taken[chunk]);
    give(choice.stop, choice.first - choice.stop);
}

}  // namespace

void score_chunks(const ChunkScores &call) {
    const int64_t width = call.width, sets = call.chunks.sets, count = call.chunks.count;
    const int64_t *borders = call.chunks.borders;
    float *row = static_cast<float *>(scratch(0, static_cast<size_t>(2 * width) * sizeof(float))), *query = row + width;
    int64_t done = call.done, chunk = std::upper_bound(borders, borders + count, done) - borders - 1;
    for (int64_t block = 0; block < call.blocks.count; ++block) {
        const int64_t first = call.blocks.bounds[block], end = call.blocks.bounds[block + 1], until = call.blocks.start + end;
        if (done < until) pool_entries(call, done, until, chunk, row);
        done = std::max(done, until);
        const int64_t seen = std::lower_bound(borders, borders + count, until) - borders;
        for (int64_t set = 0; set < sets; ++set) {
            float *scores = call.scores + (block * sets + set) * count;
            pool_queries(call, first, end, set, query, row);
            for (int64_t c = 0; c < seen; ++c)
                scores[c] = product(query, call.sums + (set * count + c) * width, width) /
                            divisor(call.pooling, std::min(borders[c + 1], until) - borders[c]);
            std::fill(scores + seen, scores + count, -__builtin_inff());
        }
    }
}

bool BestKeys::sound() const {
    for (int64_t block = 0; block < blocks.count; ++block) {
        const Choice choice = choice_of(*this, block);
        const int64_t count = offsets[block + 1] - offsets[block];
        if (count < choice.kept() || count > choice.first - choice.low) return false;
    }
    return true;
}

void best_keys(const BestKeys &call) {
    const int64_t count = call.chunks.count;
    parallel(call.blocks.count * call.chunks.sets, 1, [&](int64_t begin, int64_t end) {
        uint64_t *ranked =
            static_cast<uint64_t *>(scratch(2, static_cast<size_t>(count) * (sizeof(uint64_t) + sizeof(int64_t))));
        int64_t *taken = reinterpret_cast<int64_t *>(ranked + count);
        for (int64_t i = begin; i < end; ++i) keys_of(call, i / call.chunks.sets, i % call.chunks.sets, ranked, taken);
    });
}

}  // namespace haversack
