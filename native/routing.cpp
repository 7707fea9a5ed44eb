// Routing goes row by row, and a row's choice and shares depend on nothing but the row.
#include "routing.h"

#include "rows.h"
#include "simd/functions.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

// The largest logits in falling order, the lower number first among equals: each is the largest of what comes behind the one
// before it in that order.
void choose(const float *logits, int64_t experts, int64_t top, int32_t *choice) {
    const float lowest = -__builtin_inff();
    const auto rated = [&](int64_t i) { return logits[i] == logits[i] ? logits[i] : lowest; };
    float last = 0.0f;
    int64_t place = -1;
    for (int64_t rank = 0; rank < top; ++rank) {
        int64_t best = -1;
        float most = lowest;
        for (int64_t i = 0; i < experts; ++i) {
            const float value = rated(i);
            const bool open = place < 0 || value < last || (value == last && i > place);
            if (open && (best < 0 || value > most)) {
                best = i;
                most = value;
            }
        }
        choice[rank] = static_cast<int32_t>(best);
        last = most;
        place = best;
    }
}

float sum_of_powers(const float *values, int64_t count, float largest) {
    const Floats shift = set(largest);
    return fixed_sum(count, [&](int64_t i, int64_t n) {
        const Floats powers = exp(load_n(values + i, n) - shift);
        if (n == lanes) return powers;
        float kept[lanes] = {};
        store_part(kept, powers, n);
        return load(kept);
    });
}

void route_row(const Routing &to, int64_t row) {
    const float *logits = to.logits + row * to.experts;
    int32_t *choice = to.choice + row * to.top;
    float *shares = to.shares + row * to.top;
    choose(logits, to.experts, to.top, choice);
    for (int64_t rank = 0; rank < to.top; ++rank) shares[rank] = logits[choice[rank]];
    if (to.sigmoid) {
        sixteens(to.top,
                 [&](int64_t i, int64_t n) { store_n(shares + i, gated_by_logistic(set(1.0f), load_n(shares + i, n)), n); });
    } else {
        const float largest = shares[0];
        const float total = to.chosen ? sum_of_powers(shares, to.top, largest) : sum_of_powers(logits, to.experts, largest);
        const Floats shift = set(largest), whole = set(total);
        sixteens(to.top, [&](int64_t i, int64_t n) { store_n(shares + i, exp(load_n(shares + i, n) - shift) / whole, n); });
    }
    if (!to.normalized) return;
    float total = 0.0f;
    for (int64_t rank = 0; rank < to.top; ++rank) total += shares[rank];
    for (int64_t rank = 0; rank < to.top; ++rank) shares[rank] /= total;
}

void route(const Routing &routing) {
    for (int64_t row = 0; row < routing.n; ++row) route_row(routing, row);
}

}  // namespace

HAVERSACK_TABLE(RoutingKernels, routing) = {route};

}  // namespace haversack::HAVERSACK_TARGET
