// Norms, rope, gates and probabilities without Python: against plain computations in f64, and bit for bit over rows and threads.
#include <cstring>

#include "base/isa.h"
#include "base/pool.h"
#include "gates.h"
#include "norms.h"
#include "probabilities.h"
#include "rotary.h"
#include "tests/check.h"

using namespace haversack;
using tests::Random;

namespace {

std::vector<float> normal(Random &random, int64_t count, float size = 1.0f) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float &value : values) value = size * random.normal();
    return values;
}

bool same_bits(const float *a, const float *b, int64_t count) {
    return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0;
}

// run(first row, rows, out) on all rows at once, then on few at a time with several threads.
template <typename Run>
bool invariant(int64_t rows, int64_t width, const Run &run) {
    std::vector<float> whole(static_cast<size_t>(rows * width)), part(whole.size());
    set_threads(1);
    run(0, rows, whole.data());
    bool same = true;
    for (const int threads : {1, 3})
        for (const int64_t step : {int64_t(1), int64_t(2), int64_t(7), rows}) {
            set_threads(threads);
            for (int64_t r = 0; r < rows; r += step) run(r, rows - r < step ? rows - r : step, part.data() + r * width);
            same = same && same_bits(whole.data(), part.data(), rows * width);
        }
    set_threads(2);
    return same;
}

constexpr int64_t rows = 33;
constexpr int64_t widths[] = {1, 7, 16, 50, 64, 129};

}  // namespace

HAVERSACK_TEST(norms_equal_their_definitions_whatever_the_rows) {
    Random random(1);
    for (const int64_t width : widths) {
        const auto x = normal(random, rows * width, 3), weight = normal(random, width), bias = normal(random, width);
        const auto at = [&](int64_t first) { return x.data() + first * width; };
        std::vector<float> rms(x.size()), layer(x.size());
        norms().rms_norm(x.data(), weight.data(), 1e-5f, 1.0f, rms.data(), rows, width);
        norms().layer_norm(x.data(), weight.data(), bias.data(), 1e-3f, layer.data(), rows, width);
        for (int64_t r = 0; r < rows; ++r) {
            double sum = 0, squares = 0, off = 0;
            for (int64_t i = 0; i < width; ++i) sum += at(r)[i], squares += double(at(r)[i]) * at(r)[i];
            const double mean = sum / double(width);
            for (int64_t i = 0; i < width; ++i) off += (at(r)[i] - mean) * (at(r)[i] - mean);
            for (int64_t i = 0; i < width; ++i) {
                const double first = at(r)[i] / std::sqrt(squares / double(width) + 1e-5) * (1.0 + weight[i]);
                const double second = (at(r)[i] - mean) / std::sqrt(off / double(width) + 1e-3) * weight[i] + bias[i];
                CHECK_NEAR(rms[r * width + i], first, 1e-5 * std::fabs(first) + 1e-7);
                CHECK_NEAR(layer[r * width + i], second, 1e-4);
            }
        }
        CHECK(invariant(rows, width, [&](int64_t first, int64_t n, float *out) {
            norms().rms_norm(at(first), weight.data(), 1e-5f, 1.0f, out, n, width);
        }));
        CHECK(invariant(rows, width, [&](int64_t first, int64_t n, float *out) {
            norms().layer_norm(at(first), weight.data(), nullptr, 1e-3f, out, n, width);
        }));
    }
}

HAVERSACK_TEST(rope_turns_pairs_whatever_the_rows) {
    Random random(2);
    constexpr int64_t heads = 3;
    for (const bool interleaved : {false, true})
        for (const int64_t pairs : {int64_t(1), int64_t(10), int64_t(16), int64_t(33)}) {
            const int64_t width = 2 * pairs + 5;
            const auto x = normal(random, rows * heads * width);
            std::vector<int64_t> positions(rows);
            std::vector<double> frequencies(static_cast<size_t>(pairs));
            for (int64_t t = 0; t < rows; ++t) positions[t] = 3 * t + 1000;
            for (int64_t i = 0; i < pairs; ++i) frequencies[i] = std::pow(1e4, -double(i) / double(pairs));
            const auto turn = [&](int64_t first, int64_t n, float *out) {
                std::vector<float> cos(static_cast<size_t>(n * pairs)), sin(cos.size());
                rotary().table(positions.data() + first, n, frequencies.data(), pairs, 1.0, cos.data(), sin.data());
                std::memcpy(out, x.data() + first * heads * width, static_cast<size_t>(n * heads * width) * 4);
                rotary().rope(out, cos.data(), sin.data(), n, heads, width, pairs, interleaved);
            };
            CHECK(invariant(rows, heads * width, turn));
            std::vector<float> got(x.size());
            turn(0, rows, got.data());
            for (int64_t r = 0; r < rows * heads; ++r) {
                const float *from = x.data() + r * width, *to = got.data() + r * width;
                for (int64_t i = 0; i < pairs; ++i) {
                    const int64_t one = interleaved ? 2 * i : i, two = interleaved ? 2 * i + 1 : pairs + i;
                    const double angle = double(positions[r / heads]) * frequencies[i], c = std::cos(angle),
                                 s = std::sin(angle);
                    CHECK_NEAR(to[one], from[one] * c - from[two] * s, 1e-6);
                    CHECK_NEAR(to[two], from[two] * c + from[one] * s, 1e-6);
                }
                CHECK(same_bits(from + 2 * pairs, to + 2 * pairs, 5));
            }
        }
}

HAVERSACK_TEST(gates_equal_their_definitions_whatever_the_rows) {
    Random random(3);
    const auto exact = [](Activation activation, double x) {
        switch (activation) {
        case Activation::silu: return x / (1 + std::exp(-x));
        case Activation::gelu: return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
        case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
        default: return x > 0 ? x : 0.0;
        }
    };
    for (const Activation activation : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
        std::vector<float> x;
        for (float v = -20; v <= 20; v += 0.0137f) x.push_back(v);
        std::vector<float> got(x.size());
        gates().gate(x.data(), nullptr, got.data(), static_cast<int64_t>(x.size()), activation);
        for (size_t i = 0; i < x.size(); ++i) {
            const double wanted = exact(activation, x[i]);
            CHECK_NEAR(got[i], wanted, 4e-7 * std::fabs(wanted) + 1.3e-7 * std::fabs(x[i]));
        }
        for (const int64_t width : widths) {
            const auto gate = normal(random, rows * width, 3), up = normal(random, rows * width);
            CHECK(invariant(rows, width, [&](int64_t first, int64_t n, float *out) {
                gates().gate(gate.data() + first * width, up.data() + first * width, out, n * width, activation);
            }));
        }
        const float odd[] = {__builtin_nanf(""), __builtin_inff(), 3e38f, -3e38f};
        float out[4];
        gates().gate(odd, nullptr, out, 4, activation);
        CHECK(out[0] != out[0] && out[1] == __builtin_inff() && out[2] == 3e38f && out[3] == 0.0f);
    }
}

HAVERSACK_TEST(softcaps_equal_their_definition_whatever_the_rows) {
    Random random(7);
    for (const float cap : {0.5f, 30.0f}) {
        std::vector<float> x, got;
        for (float v = -8 * cap; v <= 8 * cap; v += 0.00137f * cap) x.push_back(v);
        got.resize(x.size());
        gates().softcap(x.data(), got.data(), static_cast<int64_t>(x.size()), cap);
        for (size_t i = 0; i < x.size(); ++i) {
            const double wanted = cap * std::tanh(static_cast<double>(x[i]) / cap);
            CHECK_NEAR(got[i], wanted, 4e-7 * std::fabs(wanted));
        }
        for (const int64_t width : widths) {
            const auto logits = normal(random, rows * width, 3 * cap);
            CHECK(invariant(rows, width, [&](int64_t first, int64_t n, float *out) {
                gates().softcap(logits.data() + first * width, out, n * width, cap);
            }));
        }
    }
}

HAVERSACK_TEST(probabilities_equal_their_definitions_whatever_the_rows) {
    Random random(4);
    for (const int64_t width : widths) {
        auto x = normal(random, rows * width, 8);
        for (int64_t r = 0; r < rows; ++r)
            if (width > 1) x[static_cast<size_t>(r * width + r % width)] = -__builtin_inff();
        const auto soft = [&](int64_t first, int64_t n, float *out) {
            probabilities().softmax(x.data() + first * width, out, n, width);
        };
        const auto logs = [&](int64_t first, int64_t n, float *out) {
            probabilities().log_softmax(x.data() + first * width, out, n, width);
        };
        CHECK(invariant(rows, width, soft));
        CHECK(invariant(rows, width, logs));
        std::vector<float> p(x.size()), log_p(x.size());
        soft(0, rows, p.data());
        logs(0, rows, log_p.data());
        for (int64_t r = 0; r < rows; ++r) {
            double total = 0;
            for (int64_t i = 0; i < width; ++i) total += std::exp(double(x[r * width + i]));
            for (int64_t i = 0; i < width; ++i) {
                const double wanted = std::exp(double(x[r * width + i])) / total;
                CHECK_NEAR(p[r * width + i], wanted, 1e-5 * wanted + 1e-37);
                if (wanted > 0) CHECK_NEAR(log_p[r * width + i], std::log(wanted), 1e-5);
            }
        }
    }
    for (const float bad : {__builtin_nanf(""), __builtin_inff(), -__builtin_inff()}) {
        std::vector<float> x(60, bad < 0 ? bad : 0.0f), out(60);
        for (int i = 0; i < 20; ++i) x[i] = 0.0f;
        x[25] = bad;
        for (int i = 40; i < 60; ++i) x[i] = 0.0f;
        CHECK(probabilities().softmax(x.data(), out.data(), 3, 20) == 1);
        CHECK(probabilities().log_softmax(x.data(), out.data(), 3, 20) == 1);
    }
}
