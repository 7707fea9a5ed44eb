// What keys say about gaps, for Python. A mismatch is answered with false: see bind/arrays.h.
#include "gaps.h"

#include <nanobind/nanobind.h>

#include "bind/arrays.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

bool gap_features(nb::handle parts_, int64_t heads, int64_t window, nb::handle bias_, nb::handle weight_, nb::handle shift_,
                  double eps, nb::handle out_) {
    const Array parts(parts_, Access::read), bias(bias_, Access::read), weight(weight_, Access::read),
        shift(shift_, Access::read), out(out_, Access::write);
    if (!parts.of<float>(2) || !bias.of<float>(1) || !weight.of<float>(1) || !shift.of<float>(1) || !out.of<float>(2))
        return false;
    const int64_t channels = bias.size(0), gaps = out.size(0);
    if (channels < 1 || !weight.same_shape(bias) || !shift.same_shape(bias)) return false;
    if (heads < 1 || channels % heads != 0 || window < 1 || window > parts.size(0)) return false;
    if (gaps < 1 || parts.size(0) != gaps + 2 * window - 1 || parts.size(1) / channels != 2 + heads || parts.size(1) % channels)
        return false;
    if (out.size(1) < 4 * channels + 1) return false;
    const Unlocked unlocked;
    haversack::gaps().features({parts.data<float>(), gaps, channels, heads, window, bias.data<float>(), weight.data<float>(),
                                shift.data<float>(), static_cast<float>(eps), out.data<float>(), out.size(1)});
    return true;
}

}  // namespace

HAVERSACK_BIND(gaps) {
    const auto any = [] { return nb::arg().none(); };
    module.def("gap_features", &gap_features, any(), nb::arg(), nb::arg(), any(), any(), any(), nb::arg(), any());
}
