// int4: 8 columns of 16 rows in 64 bytes, columns 0..3 in the low halves, 4..7 in the high ones, raised by 8.
#include "matmul_codes.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

struct Four {
    static constexpr int bytes = 64, quads = 2;
    using Step = Quads;
    template <int Q>
    HAVERSACK_INLINE Quads quad(const uint8_t *w) {
        return Q ? high_nibbles(load_quads(w)) : low_nibbles(load_quads(w));
    }
    HAVERSACK_INLINE Step step(const uint8_t *w) { return load_quads(w); }
    template <int I>
    HAVERSACK_INLINE Floats number(Step step) {
        return nibble_floats<I>(step);
    }
};

}  // namespace

void int4_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block) {
    code_blocks<Four>(product, tiles, first_block, last_block);
}

void int4_float_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block) {
    code_float_blocks<Four>(product, tiles, first_block, last_block);
}

}  // namespace haversack::HAVERSACK_TARGET
