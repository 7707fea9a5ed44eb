// Matrix products without Python: against a plain computation, and bit for bit over tokens, threads and instruction sets.
#include <cstring>

#include "base/pool.h"
#include "matmul.h"
#include "quantize.h"
#include "tests/check.h"

using namespace haversack;
using tests::Random;

namespace {

struct Made {
    std::vector<uint8_t> data;
    std::vector<float> values;  // [rows, columns]
    Weights weights;
};

uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

// Random weights that every kind holds exactly: small integers times powers of two.
Made make(Random &random, Kind kind, int64_t rows, int64_t columns, int64_t group) {
    Made made;
    const bool small = kind == Kind::int4 || kind == Kind::int3;
    made.weights = {nullptr, rows, columns, small ? group : kind >= Kind::int8 ? int8_columns : 0, kind};
    Weights &w = made.weights;
    const uint8_t fill = kind == Kind::int4 ? 0x88 : kind == Kind::int3 ? 0x24 : kind >= Kind::int8 ? 0x80 : 0;
    made.data.assign(static_cast<size_t>(w.bytes()), fill);
    made.values.resize(static_cast<size_t>(rows * columns));
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t block = r / 16, lane = r % 16;
        for (int64_t c = 0; c < columns; ++c) {
            const int integer = kind == Kind::int3 ? random.below(8) - 4 : random.below(15) - 7;
            const int64_t scale_group = small ? c / group : kind == Kind::int8_grouped ? c / 32 : 0;
            const int power = static_cast<int>((r + scale_group) % 3);
            const float scale = power == 0 ? 0.25f : power == 1 ? 0.5f : 1.0f, value = static_cast<float>(integer) * scale;
            made.values[static_cast<size_t>(r * columns + c)] = value;
            const uint16_t half = static_cast<uint16_t>(0x3400 + 0x400 * power);  // 0.25, 0.5, 1 as f16
            if (kind == Kind::f32) {
                std::memcpy(made.data.data() + 4 * (r * columns + c), &value, 4);
            } else if (kind == Kind::bf16) {
                const uint16_t stored = static_cast<uint16_t>(bits_of(value) >> 16);
                std::memcpy(made.data.data() + 2 * (r * columns + c), &stored, 2);
            } else if (kind == Kind::f16) {
                const uint32_t bits = bits_of(value);
                const uint16_t stored =
                    value == 0 ? 0 : static_cast<uint16_t>((bits >> 16 & 0x8000) | (((bits & 0x7fffffff) - 0x38000000) >> 13));
                std::memcpy(made.data.data() + 2 * (r * columns + c), &stored, 2);
            } else if (kind == Kind::int8) {
                uint8_t *at = made.data.data() + block * w.block_bytes();
                at[c / 4 * 64 + 4 * lane + c % 4] = static_cast<uint8_t>(integer + 128);
                std::memcpy(at + w.block_bytes() - 64 + 4 * lane, &scale, 4);
            } else if (kind == Kind::int8_grouped) {
                uint8_t *at = made.data.data() + block * w.block_bytes() + scale_group * (32 * 16 + 32);
                at[c % 32 / 4 * 64 + 4 * lane + c % 4] = static_cast<uint8_t>(integer + 128);
                std::memcpy(at + 32 * 16 + 2 * lane, &half, 2);
            } else if (kind == Kind::int3) {
                const int64_t inside = c % group, quad = inside % 32 / 4;
                uint8_t *at = made.data.data() + block * w.block_bytes() + scale_group * (group * 6 + 32);
                uint8_t *bytes = at + inside / 32 * 192 + 4 * lane + inside % 4;
                const int code = integer + 4;
                const auto put = [&](int64_t which, int shift, int mask, int value) {
                    uint8_t &byte = bytes[64 * which];
                    byte = static_cast<uint8_t>((byte & ~(mask << shift)) | (value << shift));
                };
                if (quad < 6) {
                    put(quad / 2, 3 * static_cast<int>(quad % 2), 7, code);
                } else {
                    put(quad - 6, 6, 3, code & 3);
                    put(2, static_cast<int>(quad), 1, code >> 2);
                }
                std::memcpy(at + group * 6 + 2 * lane, &half, 2);
            } else {
                const int64_t inside = c % group;
                uint8_t *at = made.data.data() + block * w.block_bytes() + scale_group * (group * 8 + 32);
                uint8_t &byte = at[inside / 8 * 64 + 4 * lane + inside % 4];
                const uint8_t nibble = static_cast<uint8_t>(integer + 8);
                byte = inside % 8 < 4 ? static_cast<uint8_t>((byte & 0xf0) | nibble)
                                      : static_cast<uint8_t>((byte & 0x0f) | (nibble << 4));
                std::memcpy(at + group * 8 + 2 * lane, &half, 2);
            }
        }
    }
    w.data = made.data.data();
    return made;
}

constexpr Kind kinds[] = {Kind::f32, Kind::f16, Kind::bf16, Kind::int8, Kind::int4, Kind::int3, Kind::int8_grouped};
const int shapes[][2] = {{1, 1}, {17, 33}, {40, 96}, {70, 257}};

}  // namespace

HAVERSACK_TEST(products_equal_plain_sums_and_their_bits_stay) {
    Random random(3), other(5), third(6);
    uint64_t digest = 14695981039346656037ull, grouped = digest, three = digest;
    for (const auto &shape : shapes) {
        const int64_t rows = shape[0], columns = shape[1], n = 29;
        std::vector<float> x(static_cast<size_t>(n * columns));
        for (float &value : x) value = random.normal();
        for (const Kind kind : kinds)
            for (const int64_t group : {32, 64, 96, 128}) {
                if (kind != Kind::int4 && kind != Kind::int3 && group != 32) continue;
                Random &source = kind == Kind::int8_grouped ? other : kind == Kind::int3 ? third : random;
                const Made made = make(source, kind, rows, columns, group);
                for (const Activations how : {Activations::f32, Activations::int8_dynamic, Activations::int8_static}) {
                    if (!made.weights.packed() && how != Activations::f32) continue;
                    std::vector<float> whole(static_cast<size_t>(n * rows)), part(whole.size());
                    const auto run = [&](int64_t tokens, std::vector<float> &out) {
                        const Product product = {made.weights, out.data(), nullptr};
                        matmul().products(x.data(), tokens, &product, 1, how, 0.03f);
                    };
                    set_threads(1);
                    run(n, whole);
                    for (const int threads : {1, 2, 5})
                        for (const int64_t tokens : {1, 2, 7, 12, 29}) {
                            set_threads(threads);
                            run(tokens, part);
                            CHECK(std::memcmp(part.data(), whole.data(), static_cast<size_t>(tokens * rows) * 4) == 0);
                        }
                    for (int64_t t = 0; t < n; ++t)
                        for (int64_t r = 0; r < rows; ++r) {
                            double sum = 0, size = 0, step = 0;
                            for (int64_t c = 0; c < columns; ++c) {
                                const double term = double(x[size_t(t * columns + c)]) * made.values[size_t(r * columns + c)];
                                sum += term;
                                size += std::fabs(term);
                                step += std::fabs(made.values[size_t(r * columns + c)]);
                            }
                            // int8: each input is at most half a step off; the largest input here is below 6.
                            const double half = how == Activations::f32           ? 0
                                                : how == Activations::int8_static ? 0.5 * 0.03
                                                                                  : 0.5 * 6 / 127;
                            const double got = whole[size_t(t * rows + r)];
                            const double clipped = how == Activations::int8_static ? size * 0.4 : 0;  // beyond 127 * 0.03
                            CHECK_NEAR(got, sum, 1e-5 * size + half * step + clipped);
                        }
                    uint64_t &of_kind = kind == Kind::int8_grouped ? grouped : kind == Kind::int3 ? three : digest;
                    for (const float value : whole) of_kind = (of_kind ^ bits_of(value)) * 1099511628211ull;
                }
            }
    }
    set_threads(2);
    // The bits are part of the definition: all sets that fuse multiplication and addition share them, on x86 and on Arm.
    const bool fused = active_isa() != Isa::portable;
    CHECK(digest == (fused ? 0x81200856438694b4ull : 0xf120e8645d63b4e6ull));
    CHECK(grouped == (fused ? 0xa5bc6066af6fcdcfull : 0xc6234d52ca65a96full));
    CHECK(three == (fused ? 0x37e0324c57271ba7ull : 0xf61d78d5e55be92bull));
}

HAVERSACK_TEST(quantized_inputs_are_symmetric_and_refuse_what_is_not_finite) {
    float x[64];
    Random random(4);
    for (float &value : x) value = random.normal();
    x[5] = -9.0f;
    x[40] = INFINITY;
    int8_t q[64];
    float scales[2];
    int32_t corrections[2];
    quantize().token(x, 64, 32, 0.0f, 8, q, scales, corrections);
    CHECK(q[5] == -127);
    CHECK(scales[0] == 9.0f / 127.0f);
    int32_t sum = 0;
    for (int i = 0; i < 32; ++i) {
        sum += q[i];
        CHECK_NEAR(q[i] * scales[0], x[i], 0.5001f * scales[0]);
    }
    CHECK(corrections[0] == -8 * sum);
    CHECK(std::isnan(scales[1]) && q[40] == 0 && q[41] == 0 && corrections[1] == 0);
}
