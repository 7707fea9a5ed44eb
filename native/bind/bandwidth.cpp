// The machine's memory bandwidth, for Python.
#include "base/bandwidth.h"

#include <new>

#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {
template <double (*fastest)(size_t, Pages, int)>
double measured(size_t bytes, bool huge, int rounds) {
    if (bytes == 0 || rounds < 1) throw nb::value_error("bytes and rounds are at least 1");
    double seconds;
    {
        const Unlocked unlocked;
        seconds = fastest(bytes, huge ? Pages::huge : Pages::small, rounds);
    }
    if (seconds < 0) throw std::bad_alloc();
    return seconds;
}
}  // namespace

HAVERSACK_BIND(bandwidth) {
    module.def("fastest_read", measured<fastest_read>, nb::arg("bytes"), nb::arg("huge"), nb::arg("rounds"));
    module.def("fastest_copy", measured<fastest_copy>, nb::arg("bytes"), nb::arg("huge"), nb::arg("rounds"));
}
