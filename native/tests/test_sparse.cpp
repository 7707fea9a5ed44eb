// Row-skipping products without Python: against a plain computation, bit for bit over tokens and threads, and blind to the
// weights that are skipped.
#include "sparse.h"

#include <cstring>

#include "base/pool.h"
#include "tests/check.h"

using namespace haversack;
using tests::Random;

namespace {

struct Made {
    std::vector<uint8_t> data;
    std::vector<float> values;  // [outputs, inputs]
    Channels channels;
};

// Random weights that every kind holds exactly: small integers, int4 times powers of two.
Made make(Random &random, Kind kind, int64_t outputs, int64_t inputs, int64_t group) {
    Made made;
    made.channels = {nullptr, outputs, inputs, kind == Kind::int4 ? group : 0, kind};
    Channels &c = made.channels;
    made.data.assign(static_cast<size_t>(c.bytes()), 0);
    made.values.resize(static_cast<size_t>(outputs * inputs));
    for (int64_t o = 0; o < outputs; ++o)
        for (int64_t j = 0; j < inputs; ++j) {
            const int64_t block = o / c.block(), inside = o % c.block();
            const int64_t count = c.padded() - block * c.block() < c.block() ? c.padded() - block * c.block() : c.block();
            uint8_t *run = made.data.data() + block * c.run_bytes(c.block()) * inputs + j * c.run_bytes(count);
            const int integer = random.below(15) - 7;
            const int power = kind == Kind::int4 ? static_cast<int>((o / group + j) % 3) : 0;
            const float value = static_cast<float>(integer) * static_cast<float>(1 << power);
            made.values[static_cast<size_t>(o * inputs + j)] = value;
            uint32_t bits;
            std::memcpy(&bits, &value, 4);
            if (kind == Kind::f32) {
                std::memcpy(run + 4 * inside, &value, 4);
            } else if (kind == Kind::int4) {
                const uint16_t half = static_cast<uint16_t>(0x3c00 + 0x400 * power);
                std::memcpy(run + inside / group * 2, &half, 2);
                const int64_t place = inside % 64, r = place / 16, l = place % 16 / 4, i = place % 4;
                uint8_t &byte = run[c.header_bytes(count) + inside / 128 * 64 + 16 * l + 4 * r + i];
                const int shift = inside % 128 < 64 ? 0 : 4;
                byte = static_cast<uint8_t>((byte & (0xf0 >> shift)) | ((integer + 8) << shift));
            } else {
                const uint16_t half =
                    value == 0 ? 0 : static_cast<uint16_t>((bits >> 16 & 0x8000) | (((bits & 0x7fffffff) - 0x38000000) >> 13));
                const uint16_t stored = kind == Kind::bf16 ? static_cast<uint16_t>(bits >> 16) : half;
                std::memcpy(run + 2 * inside, &stored, 2);
            }
        }
    c.data = made.data.data();
    return made;
}

}  // namespace

HAVERSACK_TEST(sparse_products_equal_plain_sums_and_their_bits_stay) {
    Random random(11);
    const int shapes[][2] = {{1, 1}, {17, 33}, {200, 70}, {4100, 40}};
    for (const auto &shape : shapes)
        for (const Kind kind : {Kind::f32, Kind::f16, Kind::bf16, Kind::int4})
            for (const int64_t group : {64, 128})
                for (const bool int8 : {false, true}) {
                    if (kind != Kind::int4 && (group == 128 || int8)) continue;
                    const int64_t outputs = shape[0], inputs = shape[1], n = 7, rank = outputs < 3 ? 1 : 3;
                    const Made weights = make(random, kind, outputs, inputs, group);
                    const Made down = make(random, Kind::f32, rank, inputs, 0), up = make(random, Kind::f16, outputs, rank, 0);
                    std::vector<float> x(size_t(n * inputs)), limits(static_cast<size_t>(inputs)),
                        whole_out(size_t(n * outputs));
                    for (float &value : x) value = random.normal();
                    for (float &value : limits) value = std::fabs(random.normal());
                    const bool whole[7] = {false, true, false, false, true, false, false};
                    const SparseProduct product = {weights.channels, limits.data(), down.channels, up.channels};
                    const auto run = [&](int64_t tokens, float *out) {
                        SparseCall call = {x.data(), tokens, out, nullptr, nullptr, whole, int8, {0, 0}};
                        sparse().multiply(product, call);
                    };
                    set_threads(1);
                    run(n, whole_out.data());
                    std::vector<float> part(whole_out.size());
                    for (const int threads : {1, 2, 5})
                        for (const int64_t tokens : {1, 2, 7}) {
                            set_threads(threads);
                            run(tokens, part.data());
                            CHECK(std::memcmp(part.data(), whole_out.data(), size_t(tokens * outputs) * 4) == 0);
                        }
                    for (int64_t t = 0; t < n; ++t)
                        for (int64_t o = 0; o < outputs; ++o) {
                            double sum = 0, size = 0, step = 0;
                            std::vector<double> inner(size_t(rank), 0.0);
                            for (int64_t j = 0; j < inputs; ++j) {
                                const double input = x[size_t(t * inputs + j)], weight = weights.values[size_t(o * inputs + j)];
                                if (whole[t] || !(std::fabs(input) <= limits[size_t(j)])) {
                                    sum += input * weight;
                                    size += std::fabs(input * weight);
                                    step += std::fabs(weight);
                                } else {
                                    for (int64_t r = 0; r < rank; ++r)
                                        inner[size_t(r)] += input * down.values[size_t(r * inputs + j)];
                                }
                            }
                            for (int64_t r = 0; r < rank; ++r) {
                                sum += inner[size_t(r)] * up.values[size_t(o * rank + r)];
                                size += std::fabs(inner[size_t(r)] * up.values[size_t(o * rank + r)]) + 1;
                            }
                            // int8: an input times its scale, below 6 * 4, is at most half a step of 127 off.
                            CHECK_NEAR(whole_out[size_t(t * outputs + o)], sum,
                                       1e-5 * size + (int8 ? 0.5 * 24 / 127 * step : 0));
                        }
                }
    set_threads(2);
}

HAVERSACK_TEST(skipped_channels_are_not_read) {
    Random random(12);
    for (const Kind kind : {Kind::f32, Kind::f16, Kind::bf16, Kind::int4}) {
        Made weights = make(random, kind, 300, 50, 64);
        std::vector<float> x(50), limits(50), clean(300), poisoned(300);
        for (float &value : x) value = random.normal();
        for (size_t j = 0; j < limits.size(); ++j) limits[j] = j % 3 ? 100.0f : 0.0f;
        const auto run = [&](std::vector<float> &out) {
            const SparseProduct product = {weights.channels, limits.data(), {}, {}};
            SparseCall call = {x.data(), 1, out.data(), nullptr, nullptr, nullptr, true, {0, 0}};
            sparse().multiply(product, call);
            CHECK(call.counts[0] == 1 && call.counts[1] == 17);
        };
        run(clean);
        const int64_t channel = weights.channels.channel_bytes();
        for (int64_t j = 0; j < 50; ++j)
            if (j % 3) std::memset(weights.data.data() + j * channel, 0xff, static_cast<size_t>(channel));
        run(poisoned);
        CHECK(std::memcmp(clean.data(), poisoned.data(), 300 * 4) == 0);
    }
}
