// Both top-k and top-p look for a score below which nothing is kept. It is found by bisection over the ordered bit patterns of
// floats, at most 32 passes over the scores, without sorting.
#include "sampling.h"

#include <cmath>

#include "base/scratch.h"
#include "rows.h"

namespace haversack::HAVERSACK_TARGET {
namespace {

constexpr float infinity = __builtin_inff();

// The largest score, or NaN when there is NaN, plus infinity or nothing finite.
float largest_finite(const float *x, int64_t n) {
    Floats top = set(-infinity), odd = zero();
    float tail[lanes];
    store(tail, top);
    sixteens(n, [&](int64_t i, int64_t here) {
        Floats v;
        if (here == lanes) {
            v = load(x + i);
        } else {
            std::memcpy(tail, x + i, static_cast<size_t>(here) * sizeof(float));
            v = load(tail);
        }
        odd = select(unordered(v), set(1.0f), odd);
        top = max(top, v);
    });
    const float found = largest(top);
    return largest(odd) == 0.0f && -infinity < found && found < infinity ? found : __builtin_nanf("");
}

int64_t first_equal(const float *x, int64_t n, float value) {
    int64_t i = 0;
    for (; i + 4 * lanes <= n; i += 4 * lanes) {
        const Floats four = max(max(load(x + i), load(x + i + lanes)), max(load(x + i + 2 * lanes), load(x + i + 3 * lanes)));
        if (largest(four) >= value) break;
    }
    while (i < n && x[i] != value) ++i;
    return i;
}

// The sum of what[i] over x[i] > bound; the number of them when `what` is nullptr.
float sum_above(const float *x, const float *what, int64_t n, float bound) {
    const Floats limit = set(bound);
    return fixed_sum(n, [&](int64_t i, int64_t here) {
        const Floats kept = what ? load_n(what + i, here) : set(1.0f);
        const Floats chosen = select(less(limit, load_n(x + i, here)), kept, zero());
        if (here == lanes) return chosen;
        float tail[lanes];
        store(tail, chosen);
        return load_part(tail, here);
    });
}

// Floats other than NaN in the order of their value.
int32_t key_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}
float of_key(int32_t key) {
    const int32_t bits = key ^ ((key >> 31) & 0x7fffffff);
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// The smallest bound for which below(bound) holds; it holds at `top` and for all larger than one for which it holds.
template <typename Below>
float smallest_bound(float top, const Below &below) {
    int64_t no = int64_t(key_of(-infinity)) - 1, yes = key_of(top);
    while (yes - no > 1) {
        const int64_t middle = no + (yes - no) / 2;
        if (below(of_key(static_cast<int32_t>(middle))))
            yes = middle;
        else
            no = middle;
    }
    return of_key(static_cast<int32_t>(yes));
}

// Excludes what lies below bound, and of what equals it all but the first that `keep` accepts one by one.
template <typename Keep>
void exclude_below(float *x, int64_t n, float bound, const Keep &keep) {
    for (int64_t i = 0; i < n; ++i)
        if (!(x[i] > bound) && !(x[i] == bound && keep(i))) x[i] = -infinity;
}

void keep_top_k(float *x, int64_t n, int64_t k, float top) {
    if (k <= 0 || k >= n) return;
    const float wanted = static_cast<float>(k);
    const float bound = smallest_bound(top, [&](float t) { return sum_above(x, nullptr, n, t) < wanted; });
    int64_t left = k - static_cast<int64_t>(sum_above(x, nullptr, n, bound));
    exclude_below(x, n, bound, [&](int64_t) { return left-- > 0; });
}

void powers_of(const float *x, int64_t n, float top, float *powers) {
    sixteens(n, [&](int64_t i, int64_t here) { store_n(powers + i, exp(load_n(x + i, here) - set(top)), here); });
}
float total_of(const float *powers, int64_t n) {
    return fixed_sum(n, [&](int64_t i, int64_t here) { return load_n(powers + i, here); });
}

void keep_top_p(float *x, int64_t n, double p, float top, float *powers) {
    if (p >= 1.0) return;
    powers_of(x, n, top, powers);
    const double wanted = p * static_cast<double>(total_of(powers, n));
    const float bound = smallest_bound(top, [&](float t) { return sum_above(x, powers, n, t) < wanted; });
    double before = sum_above(x, powers, n, bound);
    exclude_below(x, n, bound, [&](int64_t i) {
        const bool kept = before < wanted;
        before += powers[i];
        return kept;
    });
}

void keep_min_p(float *x, int64_t n, double p, float top) {
    if (p <= 0.0) return;
    const float least = static_cast<float>(static_cast<double>(top) + ::log(p));
    exclude_below(x, n, least, [](int64_t) { return true; });
}

// Logits with penalty and temperature applied; returns the largest, or NaN.
float scores_of(const float *logits, int64_t n, const Filters &filters, float *scores) {
    std::memcpy(scores, logits, static_cast<size_t>(n) * sizeof(float));
    if (filters.penalty != 1.0f)
        for (int64_t i = 0; i < filters.seen; ++i) {
            const float x = logits[filters.history[i]];
            scores[filters.history[i]] = x > 0.0f ? x / filters.penalty : x * filters.penalty;
        }
    if (filters.temperature != 0.0f && filters.temperature != 1.0f) {
        const Floats divisor = set(filters.temperature);
        sixteens(n, [&](int64_t i, int64_t here) { store_n(scores + i, load_n(scores + i, here) / divisor, here); });
    }
    return largest_finite(scores, n);
}

float filtered(const float *logits, int64_t n, const Filters &filters, float *scores, float *powers) {
    const float top = scores_of(logits, n, filters, scores);
    if (top != top) return top;
    keep_top_k(scores, n, filters.top_k, top);
    keep_top_p(scores, n, filters.top_p, top, powers);
    keep_min_p(scores, n, filters.min_p, top);
    return top;
}

int64_t draw(const float *powers, int64_t n, double number) {
    constexpr int64_t piece = 1024;
    double total = 0;
    for (int64_t i = 0; i < n; i += piece) total += total_of(powers + i, n - i < piece ? n - i : piece);
    const double wanted = number * total;
    double before = 0;
    int64_t last = 0;  // with a probability: the answer when rounding lets no sum pass
    for (int64_t i = 0; i < n; i += piece) {
        const int64_t end = n - i < piece ? n : i + piece;
        const double sum = total_of(powers + i, end - i);
        if (before + sum > wanted || end == n) {
            double within = before;
            for (int64_t k = i; k < end; ++k) {
                within += powers[k];
                if (powers[k] > 0.0f) last = k;
                if (within > wanted) return k;
            }
            if (before + sum > wanted) return last;
        }
        before += sum;
        if (sum > 0)
            for (int64_t k = end - 1; k >= i; --k)
                if (powers[k] > 0.0f) {
                    last = k;
                    break;
                }
    }
    return last;
}

float *memory(int64_t n) { return static_cast<float *>(scratch(0, static_cast<size_t>(3 * n) * sizeof(float))); }

// Logits with minus infinity where a token is not allowed.
const float *only_allowed(const float *logits, int64_t n, const Filters &filters, float *out) {
    const int64_t known = smaller_of(n, filters.known);
    for (int64_t i = 0; i < known; ++i) out[i] = filters.allowed[i] ? logits[i] : -infinity;
    for (int64_t i = known; i < n; ++i) out[i] = -infinity;
    return out;
}

int64_t greedy(const float *logits, int64_t n) {
    const float top = largest_finite(logits, n);
    return top != top ? -1 : first_equal(logits, n, top);
}

bool filter(const float *logits, int64_t n, const Filters &filters, float *out) {
    float *scores = memory(n);
    const float input = largest_finite(logits, n), top = filtered(logits, n, filters, scores, scores + n);
    if (input != input || top != top) return false;
    std::memcpy(out, scores, static_cast<size_t>(n) * sizeof(float));
    return true;
}

double log_probability_of(float logit, float top, const float *powers, int64_t n) {
    return static_cast<double>(logit) - top - ::log(static_cast<double>(total_of(powers, n)));
}

bool sample(const float *logits, int64_t n, const Filters &filters, double number, int64_t *token, double *log_probability) {
    float *scores = memory(n), *powers = scores + n;
    if (filters.allowed) logits = only_allowed(logits, n, filters, powers + n);
    const bool plain = filters.temperature == 1.0f && filters.top_k == 0 && filters.top_p >= 1.0 && filters.min_p <= 0.0 &&
                       filters.penalty == 1.0f;
    const float input = largest_finite(logits, n);
    if (plain) {  // scores are the logits, and one sum of powers serves both answers
        if (input != input) return false;
        powers_of(logits, n, input, powers);
        *token = draw(powers, n, number);
        *log_probability = log_probability_of(logits[*token], input, powers, n);
        return true;
    }
    const float top =
        filters.temperature == 0.0f ? scores_of(logits, n, filters, scores) : filtered(logits, n, filters, scores, powers);
    if (input != input || top != top) return false;
    if (filters.temperature == 0.0f) {
        *token = first_equal(scores, n, top);
    } else {
        powers_of(scores, n, top, powers);
        *token = draw(powers, n, number);
    }
    powers_of(logits, n, input, powers);
    *log_probability = log_probability_of(logits[*token], input, powers, n);
    return true;
}

}  // namespace

HAVERSACK_TABLE(SamplingKernels, sampling) = {greedy, filter, sample};

}  // namespace haversack::HAVERSACK_TARGET
