// Norms, rope, gates and probabilities, for Python. A mismatch is answered with false: see bind/arrays.h.
#include <nanobind/nanobind.h>

#include "bind/arrays.h"
#include "bind/register.h"
#include "gates.h"
#include "norms.h"
#include "probabilities.h"
#include "rotary.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

bool rms_norm(nb::handle x_, nb::handle weight_, double eps, double offset, nb::handle out_) {
    const Array x(x_, Access::read), weight(weight_, Access::read), out(out_, Access::write);
    if (!x.of<float>() || !weight.of<float>(1) || !out.of<float>() || !out.same_shape(x) || x.last() < 1 ||
        weight.size(0) != x.last())
        return false;
    const Unlocked unlocked;
    norms().rms_norm(x.data<float>(), weight.data<float>(), static_cast<float>(eps), static_cast<float>(offset),
                     out.data<float>(), x.numbers() / x.last(), x.last());
    return true;
}

bool layer_norm(nb::handle x_, nb::handle weight_, nb::handle bias_, double eps, nb::handle out_) {
    const Array x(x_, Access::read), weight(weight_, Access::read), bias(bias_, Access::read), out(out_, Access::write);
    if (!x.of<float>() || !weight.of<float>(1) || !out.of<float>() || !out.same_shape(x) || x.last() < 1 ||
        weight.size(0) != x.last() || !(bias.none() || (bias.of<float>(1) && bias.size(0) == x.last())))
        return false;
    const Unlocked unlocked;
    norms().layer_norm(x.data<float>(), weight.data<float>(), bias.data<float>(), static_cast<float>(eps), out.data<float>(),
                       x.numbers() / x.last(), x.last());
    return true;
}

// table [2, n, pairs]: cosines, then sines.
bool rope_table(nb::handle positions_, nb::handle frequencies_, double scale, nb::handle table_) {
    const Array positions(positions_, Access::read), frequencies(frequencies_, Access::read), table(table_, Access::write);
    if (!positions.of<int64_t>(1) || !frequencies.of<double>(1) || !table.of<float>(3) || table.size(0) != 2 ||
        table.size(1) != positions.size(0) || table.size(2) != frequencies.size(0))
        return false;
    const Unlocked unlocked;
    rotary().table(positions.data<int64_t>(), positions.size(0), frequencies.data<double>(), frequencies.size(0), scale,
                   table.data<float>(), table.data<float>() + table.size(1) * table.size(2));
    return true;
}

bool rope(nb::handle x_, nb::handle cos_, nb::handle sin_, bool interleaved) {
    const Array x(x_, Access::write), cos(cos_, Access::read), sin(sin_, Access::read);
    if (!x.of<float>(3) || !cos.of<float>(2) || !sin.of<float>(2) || !sin.same_shape(cos) || cos.size(0) != x.size(0) ||
        cos.size(1) < 1 || 2 * cos.size(1) > x.size(2))
        return false;
    const Unlocked unlocked;
    rotary().rope(x.data<float>(), cos.data<float>(), sin.data<float>(), x.size(0), x.size(1), x.size(2), cos.size(1),
                  interleaved);
    return true;
}

bool gate(nb::handle gate_, nb::handle up_, int kind, nb::handle out_) {
    const Array gate(gate_, Access::read), up(up_, Access::read), out(out_, Access::write);
    if (!gate.of<float>() || !out.of<float>() || !out.same_shape(gate) ||
        !(up.none() || (up.of<float>() && up.same_shape(gate))))
        return false;
    const Unlocked unlocked;
    gates().gate(gate.data<float>(), up.data<float>(), out.data<float>(), gate.numbers(), static_cast<Activation>(kind));
    return true;
}

bool softcap(nb::handle x_, double cap, nb::handle out_) {
    const Array x(x_, Access::read), out(out_, Access::write);
    if (!x.of<float>() || !out.of<float>() || !out.same_shape(x) || !(cap > 0)) return false;
    const Unlocked unlocked;
    gates().softcap(x.data<float>(), out.data<float>(), x.numbers(), static_cast<float>(cap));
    return true;
}

template <typename Kernel>
bool rows_of(nb::handle x_, nb::handle out_, Kernel kernel) {
    const Array x(x_, Access::read), out(out_, Access::write);
    if (!x.of<float>(2) || !out.of<float>(2) || !out.same_shape(x)) return false;
    if (x.numbers() == 0) return true;
    const Unlocked unlocked;
    return kernel(x.data<float>(), out.data<float>(), x.size(0), x.size(1)) < 0;
}

}  // namespace

HAVERSACK_BIND(rows) {
    const auto any = [] { return nb::arg().none(); };
    module.def("rms_norm", &rms_norm, any(), any(), nb::arg(), nb::arg(), any());
    module.def("layer_norm", &layer_norm, any(), any(), any(), nb::arg(), any());
    module.def("rope_table", &rope_table, any(), any(), nb::arg(), any());
    module.def("rope", &rope, any(), any(), any(), nb::arg());
    module.def("gate", &gate, any(), any(), nb::arg(), any());
    module.def("softcap", &softcap, any(), nb::arg(), any());
    module.def("softmax", [](nb::handle x, nb::handle out) { return rows_of(x, out, probabilities().softmax); }, any(), any());
    module.def(
        "log_softmax", [](nb::handle x, nb::handle out) { return rows_of(x, out, probabilities().log_softmax); }, any(), any());
}
