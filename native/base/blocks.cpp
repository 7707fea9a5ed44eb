#include "base/blocks.h"

#include <cstring>

#include "base/pool.h"

namespace haversack {
namespace {

uint32_t word(const uint8_t *p) {
    uint32_t found;
    std::memcpy(&found, p, 4);
    return found;
}

// 16 bytes hold numbers 0..15 in their low halves and 16..31 in their high ones; 4 words hold 8 numbers each, the first 4 low.
void nibbles(const uint8_t *q, uint8_t *to) {
    constexpr uint32_t low = 0x0f0f0f0fu;
    const uint32_t a = word(q), b = word(q + 4), c = word(q + 8), d = word(q + 12);
    const uint32_t words[4] = {(a & low) | (b & low) << 4, (c & low) | (d & low) << 4, (a >> 4 & low) | (b & ~low),
                               (c >> 4 & low) | (d & ~low)};
    for (int i = 0; i < 4; ++i) std::memcpy(to + 64 * i, &words[i], 4);
}

void signed_bytes(const uint8_t *q, uint8_t *to) {
    for (int i = 0; i < 8; ++i) {
        const uint32_t raised = word(q + 4 * i) ^ 0x80808080u;
        std::memcpy(to + 64 * i, &raised, 4);
    }
}

}  // namespace

void interleave_blocks(const uint8_t *from, int64_t rows, int64_t columns, int bits, const int32_t *order, uint8_t *to) {
    const int64_t groups = columns / 32, weights = bits == 4 ? 256 : 512, stored = bits == 4 ? 18 : 34;
    const int64_t out = weights + 32;
    parallel((rows + 15) / 16, 1 + 65536 / (groups * out), [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block)
            for (int64_t lane = 0; lane < 16; ++lane) {
                const int64_t row = block * 16 + lane;
                uint8_t *at = to + block * groups * out;
                const uint8_t *p = row < rows ? from + (order ? order[row] : row) * groups * stored : nullptr;
                for (int64_t g = 0; g < groups; ++g, at += out) {
                    if (!p) {
                        for (int64_t i = 0; i < weights / 64; ++i)
                            std::memset(at + 64 * i + 4 * lane, bits == 4 ? 0x88 : 0x80, 4);
                        std::memset(at + weights + 2 * lane, 0, 2);
                        continue;
                    }
                    if (bits == 4) {
                        nibbles(p + 2, at + 4 * lane);
                    } else {
                        signed_bytes(p + 2, at + 4 * lane);
                    }
                    std::memcpy(at + weights + 2 * lane, p, 2);
                    p += stored;
                }
            }
    });
}

}  // namespace haversack
