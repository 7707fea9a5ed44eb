// GGUF's blocks of 32 weights put into the kernels' layout rows16-1, number for number.
#pragma once
#include <cstdint>

namespace haversack {

// from: `rows` rows of columns / 32 blocks, each an f16 scale and 16 bytes of nibbles (bits 4, Q4_0) or 32 signed bytes (bits 8,
// Q8_0). to: blocks of 16 rows. Row r of the result is row order[r] of `from`, or row r when order is nullptr. Rows beyond the
// last hold weight 0 and scale 0.
void interleave_blocks(const uint8_t *from, int64_t rows, int64_t columns, int bits, const int32_t *order, uint8_t *to);

}  // namespace haversack
