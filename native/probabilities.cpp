#include "probabilities.h"

#include <cmath>

#include "base/pool.h"
#include "rows.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

constexpr float infinity = __builtin_inff();

// The largest score. NaN may or may not come out: it shows in the sum of powers.
HAVERSACK_INLINE float largest_of(const float *x, int64_t width) {
    Floats top = set(-infinity);
    float tail[lanes];
    store(tail, top);
    sixteens(width, [&](int64_t i, int64_t n) {
        if (n == lanes) {
            top = max(top, load(x + i));
        } else {
            std::memcpy(tail, x + i, static_cast<size_t>(n) * sizeof(float));
            top = max(top, load(tail));
        }
    });
    return largest(top);
}

// Both return false for a row without probabilities.
bool softmax_row(const float *x, float *out, int64_t width) {
    const float top = largest_of(x, width);
    if (!(-infinity < top && top < infinity)) return false;
    sixteens(width, [&](int64_t i, int64_t n) { store_n(out + i, exp(load_n(x + i, n) - set(top)), n); });
    const float total = fixed_sum(width, [&](int64_t i, int64_t n) { return load_n(out + i, n); });
    if (total != total) return false;
    sixteens(width, [&](int64_t i, int64_t n) { store_n(out + i, load_n(out + i, n) / set(total), n); });
    return true;
}

bool log_softmax_row(const float *x, float *out, int64_t width) {
    const float top = largest_of(x, width);
    if (!(-infinity < top && top < infinity)) return false;
    float kept[lanes];  // a last vector that is not full must add nothing: e^0 is 1
    const float total = fixed_sum(width, [&](int64_t i, int64_t n) {
        const Floats power = exp(load_n(x + i, n) - set(top));
        if (n == lanes) return power;
        store(kept, power);
        return load_part(kept, n);
    });
    if (total != total) return false;
    const Floats first = set(top), second = set(static_cast<float>(::log(static_cast<double>(total))));
    sixteens(width, [&](int64_t i, int64_t n) { store_n(out + i, load_n(x + i, n) - first - second, n); });
    return true;
}

template <typename Row>
int64_t each_row(const float *x, float *out, int64_t rows, int64_t width, const Row &row) {
    int64_t refused = -1;
    parallel(rows, 1 + 8192 / (width + 1), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            if (!row(x + r * width, out + r * width, width)) __atomic_store_n(&refused, r, __ATOMIC_RELAXED);
    });
    return refused;
}

int64_t softmax(const float *x, float *out, int64_t rows, int64_t width) { return each_row(x, out, rows, width, softmax_row); }
int64_t log_softmax(const float *x, float *out, int64_t rows, int64_t width) {
    return each_row(x, out, rows, width, log_softmax_row);
}

}  // namespace

HAVERSACK_TABLE(ProbabilityKernels, probabilities) = {softmax, log_softmax};

}  // namespace haversack::HAVERSACK_TARGET
