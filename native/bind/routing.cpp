// Routing, for Python. A mismatch is answered with false: see bind/arrays.h.
#include "routing.h"

#include <nanobind/nanobind.h>

#include "bind/arrays.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

bool route(nb::handle logits_, int scoring, bool chosen, bool normalized, nb::handle choice_, nb::handle shares_) {
    const Array logits(logits_, Access::read), choice(choice_, Access::write), shares(shares_, Access::write);
    if (!logits.of<float>(2) || !choice.of<int32_t>(2) || !shares.of<float>(2) || !choice.same_shape(shares)) return false;
    const int64_t top = choice.size(1);
    if (choice.size(0) != logits.size(0) || top < 1 || top > logits.size(1) || scoring < 0 || scoring > 1) return false;
    const Routing routing = {logits.data<float>(), logits.size(0),         logits.size(1),      top, scoring == 1, chosen,
                             normalized,           choice.data<int32_t>(), shares.data<float>()};
    const Unlocked unlocked;
    haversack::routing().route(routing);
    return true;
}

}  // namespace

HAVERSACK_BIND(routing) {
    module.def("route", &route, nb::arg("logits").none(), nb::arg("scoring"), nb::arg("chosen"), nb::arg("normalized"),
               nb::arg("choice").none(), nb::arg("shares").none());
}
