// What the matrix products of a TinyLlama-1.1B shape cost, beside what reading their bytes costs.
//   bench_matmul [kind=int4] [group=32] [tokens=1] [threads=1,2] [activations=int8|f32] [layers=22] [isa]
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/memory.h"
#include "base/pool.h"
#include "matmul.h"
#include "tests/check.h"

using namespace haversack;

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double median_of(int times, const std::vector<double> &all) {
    std::vector<double> sorted(all.begin(), all.begin() + times);
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
}

volatile uint64_t sink;

// GB/s of reading `bytes` once, with all threads.
double read_speed(const uint8_t *data, int64_t bytes) {
    const double start = seconds();
    parallel(bytes / 4096, 64, [&](int64_t begin, int64_t end) {
        uint64_t sums[8] = {};
        for (const uint64_t *p = reinterpret_cast<const uint64_t *>(data + begin * 4096);
             p < reinterpret_cast<const uint64_t *>(data + end * 4096); p += 8)
            for (int i = 0; i < 8; ++i) sums[i] += p[i];
        sink = sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
    });
    return static_cast<double>(bytes) / (seconds() - start) / 1e9;
}

}  // namespace

int main(int count, char **words) {
    std::string kind = "int4", activations = "int8";
    int64_t group = 32, n = 1, layers = 22;
    std::vector<int> thread_counts = {1, 2};
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        const size_t at = word.find('=');
        const std::string name = word.substr(0, at), value = at == std::string::npos ? "" : word.substr(at + 1);
        if (name == "kind")
            kind = value;
        else if (name == "group")
            group = std::atoi(value.c_str());
        else if (name == "tokens")
            n = std::atoi(value.c_str());
        else if (name == "layers")
            layers = std::atoi(value.c_str());
        else if (name == "activations")
            activations = value;
        else if (name == "threads") {
            thread_counts.clear();
            for (const char *p = value.c_str(); *p;) {
                thread_counts.push_back(std::atoi(p));
                p = std::strchr(p, ',') ? std::strchr(p, ',') + 1 : "";
            }
        } else if (!select_isa(word.c_str())) {
            std::printf("%s?\n", word.c_str());
            return 2;
        }
    }
    const Kind kinds[] = {Kind::f32, Kind::f16, Kind::bf16, Kind::int8, Kind::int4, Kind::int3};
    const char *const names[] = {"f32", "f16", "bf16", "int8", "int4", "int3"};
    Kind of = Kind::int4;
    for (int i = 0; i < 6; ++i)
        if (kind == names[i]) of = kinds[i];
    const bool packed = of >= Kind::int8;
    const int64_t columns_of_group = of >= Kind::int4 ? group : packed ? int8_columns : 0;
    const Activations how = packed && activations == "int8" ? Activations::int8_dynamic : Activations::f32;

    // q k v | o | gate up | down, for each layer, then the output matrix (int8, as the peer has it at 6 bits or more).
    struct Call {
        std::vector<Weights> weights;
        int64_t columns;
    };
    std::vector<Call> calls;
    const auto weights_of = [&](int64_t rows, int64_t columns) {
        return Weights{nullptr, rows, columns, columns_of_group, of};
    };
    for (int64_t layer = 0; layer < layers; ++layer) {
        calls.push_back({{weights_of(2048, 2048), weights_of(256, 2048), weights_of(256, 2048)}, 2048});
        calls.push_back({{weights_of(2048, 2048)}, 2048});
        calls.push_back({{weights_of(5632, 2048), weights_of(5632, 2048)}, 2048});
        calls.push_back({{weights_of(2048, 5632)}, 5632});
    }
    if (packed && n == 1) calls.push_back({{Weights{nullptr, 32000, 2048, int8_columns, Kind::int8}}, 2048});
    int64_t bytes = 0;
    double operations = 0;
    for (Call &call : calls)
        for (Weights &weights : call.weights) {
            bytes += (weights.bytes() + 63) / 64 * 64;
            operations += 2.0 * static_cast<double>(weights.rows * weights.columns * n);
        }
    uint8_t *data = static_cast<uint8_t *>(huge_allocate(static_cast<size_t>(bytes)));
    tests::Random random(1);
    std::vector<uint32_t> noise(1 << 16);
    for (uint32_t &word : noise) word = packed ? random.bits() * 2654435761u : 0x38003800u + (random.bits() & 0x00ff00ff);
    for (int64_t at = 0; at < bytes; at += 1 << 18)
        std::memcpy(data + at, noise.data(), static_cast<size_t>(std::min<int64_t>(1 << 18, bytes - at)));
    int64_t at = 0;
    for (Call &call : calls)
        for (Weights &weights : call.weights) {
            weights.data = data + at;
            at += (weights.bytes() + 63) / 64 * 64;
        }
    std::vector<float> x(static_cast<size_t>(n * 5632)), out(static_cast<size_t>(n * 32000));
    for (float &value : x) value = random.normal();

    std::printf("%s group %ld, %ld tokens, %s activations, %s, %.0f MB\n", kind.c_str(), long(group), long(n),
                how == Activations::f32 ? "f32" : "int8", active_isa_name(), static_cast<double>(bytes) / 1e6);
    for (const int threads : thread_counts) {
        set_threads(threads);
        constexpr int rounds = 9;
        std::vector<double> spent, reading;
        for (int round = 0; round < rounds + 1; ++round) {
            const double start = seconds();
            for (const Call &call : calls) {
                Product products[3];
                float *to = out.data();
                int made = 0;
                for (const Weights &weights : call.weights) {
                    products[made++] = {weights, to, nullptr};
                    to += n * weights.rows;
                }
                matmul().products(x.data(), n, products, made, how, 0.0f);
            }
            if (round) spent.push_back(seconds() - start);
            if (round) reading.push_back(read_speed(data, bytes));
        }
        const double time = median_of(rounds, spent), speed = static_cast<double>(bytes) / time / 1e9;
        std::printf("%d threads: %7.2f ms, %6.1f GB/s (reading %5.1f), %6.1f GOP/s, %6.1f tokens/s\n", threads, time * 1e3,
                    speed, median_of(rounds, reading), operations / time / 1e9, static_cast<double>(n) / time);
    }
    return 0;
}
