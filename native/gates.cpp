#include "gates.h"

#include "base/pool.h"
#include "rows.h"
#include "simd/functions.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

template <Activation activation>
HAVERSACK_INLINE Floats activated(Floats x) {
    if constexpr (activation == Activation::silu) return gated_by_logistic(x, x);
    if constexpr (activation == Activation::gelu) return set(0.5f) * x * (set(1.0f) + erf(x * set(0.70710678118654752f)));
    if constexpr (activation == Activation::gelu_tanh) {  // (1 + tanh u) / 2 = 1 / (1 + e^-2u)
        const Floats inner = fma(x * x * set(0.044715f), x, x);
        return gated_by_logistic(x, inner * set(1.5957691216057308f));
    }
    return max(zero(), x);
}

// body(i, n) for the numbers i .. i + n - 1, sixteen or fewer at a time, over the threads.
template <typename Body>
void each(int64_t size, Body body) {
    constexpr int64_t piece = 4096;  // numbers; large enough to be worth a thread, and a whole number of vectors
    parallel((size + piece - 1) / piece, 1, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * piece, last = end * piece < size ? end * piece : size;
        sixteens(last - first, [&](int64_t at, int64_t n) { body(first + at, n); });
    });
}

template <Activation activation>
void run(const float *gate, const float *up, float *out, int64_t size) {
    each(size, [&](int64_t i, int64_t n) {
        const Floats y = activated<activation>(load_n(gate + i, n));
        store_n(out + i, up ? y * load_n(up + i, n) : y, n);
    });
}

void softcap(const float *x, float *out, int64_t size, float cap) {
    const Floats bound = set(cap);
    each(size, [&](int64_t i, int64_t n) { store_n(out + i, bound * tanh(load_n(x + i, n) / bound), n); });
}

void gate(const float *gate, const float *up, float *out, int64_t size, Activation activation) {
    switch (activation) {
    case Activation::silu: return run<Activation::silu>(gate, up, out, size);
    case Activation::gelu: return run<Activation::gelu>(gate, up, out, size);
    case Activation::gelu_tanh: return run<Activation::gelu_tanh>(gate, up, out, size);
    case Activation::relu: return run<Activation::relu>(gate, up, out, size);
    }
}

}  // namespace

HAVERSACK_TABLE(GateKernels, gates) = {gate, softcap};

}  // namespace haversack::HAVERSACK_TARGET
