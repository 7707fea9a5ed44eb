// Sampling, for Python. A mismatch is answered with None (filter_logits: false): see bind/arrays.h.
#include "sampling.h"

#include <nanobind/nanobind.h>

#include <cmath>

#include "bind/arrays.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

// SplitMix64 (Steele, Lea and Flood 2014): its finalizer, and its stream from a mixed seed, jumped to `step`.
constexpr uint64_t golden = 0x9E3779B97F4A7C15u;
uint64_t mixed(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
double uniform(uint64_t seed, uint64_t step) {
    return static_cast<double>(mixed(mixed(seed + golden) + (step + 1) * golden) >> 11) * 0x1p-53;
}

struct Request {
    const Array logits, history, allowed;
    Filters filters;
    bool fits = false;

    Request(nb::handle logits_, double temperature, int64_t top_k, double top_p, double min_p, double penalty,
            nb::handle history_, nb::handle allowed_)
        : logits(logits_, Access::read), history(history_, Access::read), allowed(allowed_, Access::read) {
        if (!logits.of<float>(1) || logits.size(0) == 0) return;
        if (!allowed.none() && !allowed.of<bool>(1)) return;
        if (!(temperature >= 0 && temperature < INFINITY) || top_k < 0 || !(top_p > 0 && top_p <= 1) ||
            !(min_p >= 0 && min_p <= 1) || !(penalty > 0 && penalty < INFINITY))
            return;
        if (!history.none()) {
            if (!history.of<int32_t>(1)) return;
            for (int64_t i = 0; i < history.size(0); ++i) {
                const int64_t token = history.data<int32_t>()[i];
                if (token < 0 || token >= logits.size(0)) return;
            }
        }
        filters = {static_cast<float>(temperature),
                   top_k,
                   top_p,
                   min_p,
                   static_cast<float>(penalty),
                   history.data<int32_t>(),
                   history.none() ? 0 : history.size(0),
                   allowed.data<uint8_t>(),
                   allowed.none() ? 0 : allowed.size(0)};
        fits = true;
    }
};

}  // namespace

HAVERSACK_BIND(sampling) {
    const auto any = [] { return nb::arg().none(); };
    module.def(
        "greedy",
        [](nb::handle logits_) -> int64_t {
            const Array logits(logits_, Access::read);
            if (!logits.of<float>(1) || logits.size(0) == 0) return -1;
            return sampling().greedy(logits.data<float>(), logits.size(0));
        },
        any());
    module.def(
        "filter_logits",
        [](nb::handle logits, double temperature, int64_t top_k, double top_p, double min_p, double penalty, nb::handle history,
           nb::handle out_) {
            const Request request(logits, temperature, top_k, top_p, min_p, penalty, history, nb::none());
            const Array out(out_, Access::write);
            if (!request.fits || temperature == 0 || !out.of<float>(1) || !out.same_shape(request.logits)) return false;
            const Unlocked unlocked;
            return sampling().filter(request.logits.data<float>(), request.logits.size(0), request.filters, out.data<float>());
        },
        any(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), any(), any());
    module.def(
        "sample",
        [](nb::handle logits, double temperature, int64_t top_k, double top_p, double min_p, double penalty, nb::handle history,
           uint64_t seed, uint64_t step, nb::handle allowed) -> nb::object {
            const Request request(logits, temperature, top_k, top_p, min_p, penalty, history, allowed);
            int64_t token = 0;
            double log_probability = 0;
            bool drawn = request.fits;
            if (drawn) {
                const Unlocked unlocked;
                drawn = sampling().sample(request.logits.data<float>(), request.logits.size(0), request.filters,
                                          uniform(seed, step), &token, &log_probability);
            }
            if (!drawn) return nb::none();
            return nb::make_tuple(token, log_probability);
        },
        any(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), any(), nb::arg(), nb::arg(), any());
}
