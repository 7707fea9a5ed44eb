// Products with the rows that a gate left, for Python. A mismatch is answered with false: see bind/arrays.h.
#include "neurons.h"

#include <nanobind/nanobind.h>

#include "bind/arrays.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

// A matrix as the kernels take it; keeps the array that holds its bytes.
struct NeuronHandle {
    Channels matrix = {};
    nb::object owner;
};

NeuronHandle handle(nb::object data_, int kind, int64_t columns, int64_t rows, int64_t group) {
    const Array data(data_, Access::read);
    bool fits = data.of<uint8_t>(1) && (kind == 4 || (kind >= 0 && kind <= 2)) && columns >= 1 && rows >= 1;
    NeuronHandle made;
    if (fits) made.matrix = {data.data<uint8_t>(), columns, rows, group, static_cast<Kind>(kind)};
    fits = fits && (made.matrix.packed() ? group == 64 || group == 128 : group == 0);
    if (!fits || made.matrix.bytes() != data.numbers()) throw nb::value_error("neurons: kind, shape and bytes do not fit");
    made.owner = std::move(data_);
    return made;
}

bool gated(nb::handle x_, const NeuronHandle &handle, nb::handle gate_, nb::handle out_) {
    const Array x(x_, Access::read), gate(gate_, Access::read), out(out_, Access::write);
    const Channels &matrix = handle.matrix;
    if (!x.of<float>(2) || !gate.of<float>(2) || !out.of<float>(2) || x.size(1) != matrix.outputs ||
        gate.size(1) != matrix.inputs || gate.size(0) != x.size(0) || !out.same_shape(gate))
        return false;
    const NeuronCall call = {matrix, x.data<float>(), x.size(0), gate.data<float>(), out.data<float>()};
    const Unlocked unlocked;
    neurons().gated(call);
    return true;
}

}  // namespace

HAVERSACK_BIND(neurons) {
    nb::class_<NeuronHandle>(module, "Neurons");
    module.def("neurons", &handle, nb::arg("data"), nb::arg("kind"), nb::arg("columns"), nb::arg("rows"), nb::arg("group"));
    module.def("neurons_gated", &gated, nb::arg("x").none(), nb::arg("matrix"), nb::arg("gate").none(), nb::arg("out").none());
}
