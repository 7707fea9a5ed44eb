// int3: 32 columns of 16 rows in three times 64 bytes, raised by 4. Each of the three holds two quads of columns in bits 0..2 and
// 3..5 of its bytes. Quad 6 has its low two bits in bits 6 and 7 of the first and its high one in bit 6 of the third; quad 7
// in the second and bit 7 of the third. So six of eight come by a mask and at most a shift.
#include "matmul_codes.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

struct Three {
    static constexpr int bytes = 192, quads = 8;
    struct Step {
        Quads w[3], last[2];
    };
    template <int Q>
    HAVERSACK_INLINE Quads quad(const uint8_t *w) {
        if constexpr (Q < 6)
            return three_bits<3 * (Q % 2)>(load_quads(w + 64 * (Q / 2)));
        else
            return spread_bits<Q - 2>(load_quads(w + 64 * (Q - 6)), load_quads(w + 128));
    }
    HAVERSACK_INLINE Step step(const uint8_t *w) {
        return {{load_quads(w), load_quads(w + 64), load_quads(w + 128)}, {quad<6>(w), quad<7>(w)}};
    }
    template <int I>
    HAVERSACK_INLINE Floats number(const Step &step) {
        constexpr int quad = I / 4, byte = 8 * (I % 4);
        if constexpr (quad < 6)
            return three_bit_floats<byte + 3 * (quad % 2)>(step.w[quad / 2]);
        else
            return three_bit_floats<byte>(step.last[quad - 6]);
    }
};

}  // namespace

void int3_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block) {
    code_blocks<Three>(product, tiles, first_block, last_block);
}

void int3_float_blocks(const Product &product, const Tiles &tiles, int64_t first_block, int64_t last_block) {
    code_float_blocks<Three>(product, tiles, first_block, last_block);
}

}  // namespace haversack::HAVERSACK_TARGET
