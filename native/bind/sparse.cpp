// Row-skipping products, for Python. A mismatch is answered with false: kernels/sparse.py then words the error.
#include "sparse.h"

#include <nanobind/nanobind.h>

#include "bind/arrays.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

// A product as the kernels take it; keeps the arrays that hold its bytes.
struct SparseHandle {
    SparseProduct product = {};
    nb::object owners;
};

bool read_channels(nb::handle data_, int kind, int64_t outputs, int64_t inputs, int64_t group, Channels &to) {
    const Array data(data_, Access::read);
    if (!data.of<uint8_t>(1) || kind < 0 || kind > 4 || kind == 3 || outputs < 1 || inputs < 1) return false;
    to = {data.data<uint8_t>(), outputs, inputs, group, static_cast<Kind>(kind)};
    if (to.packed() ? group != 64 && group != 128 : group != 0) return false;
    return to.bytes() == data.numbers();
}

// (data, kind, outputs, inputs, group) of the weights and, for a low-rank product, of its two matrices.
SparseHandle handle(nb::tuple weights, nb::object limits_, nb::object down, nb::object up) {
    SparseHandle made;
    const auto read = [](nb::handle given, Channels &to) {
        const nb::tuple five = nb::cast<nb::tuple>(given);
        return five.size() == 5 && read_channels(five[0], nb::cast<int>(five[1]), nb::cast<int64_t>(five[2]),
                                                 nb::cast<int64_t>(five[3]), nb::cast<int64_t>(five[4]), to);
    };
    const Array limits(limits_, Access::read);
    bool fits = read(weights, made.product.weights) && limits.of<float>(1) && down.is_none() == up.is_none();
    const Channels &of = made.product.weights;
    fits = fits && limits.numbers() == of.inputs;
    if (fits && !down.is_none()) {
        fits = read(down, made.product.down) && read(up, made.product.up);
        const Channels &one = made.product.down, &two = made.product.up;
        fits = fits && !one.packed() && !two.packed() && one.inputs == of.inputs && one.outputs == two.inputs &&
               two.outputs == of.outputs;
    }
    if (!fits) throw nb::value_error("sparse: kinds, shapes, limits and bytes do not fit each other");
    made.product.limits = limits.data<float>();
    made.owners = nb::make_tuple(weights, limits_, down, up);
    return made;
}

bool multiply(nb::handle x_, const SparseHandle &handle, nb::handle out_, nb::handle add_, nb::handle bias_, nb::handle whole_,
              bool int8, nb::handle counts_) {
    const Array x(x_, Access::read), out(out_, Access::write), add(add_, Access::read), bias(bias_, Access::read);
    const Array whole(whole_, Access::read), counts(counts_, Access::write);
    const Channels &weights = handle.product.weights;
    if (!x.of<float>(2) || !out.of<float>(2) || x.size(1) != weights.inputs || out.size(0) != x.size(0) ||
        out.size(1) != weights.outputs || !(add.none() || (add.of<float>(2) && add.same_shape(out))) ||
        !(bias.none() || (bias.of<float>(1) && bias.size(0) == weights.outputs)) ||
        !(whole.none() || (whole.of<bool>(1) && whole.size(0) == x.size(0))) || !counts.of<int64_t>(1) || counts.size(0) != 2)
        return false;
    SparseCall call = {
        x.data<float>(), x.size(0), out.data<float>(), add.data<float>(), bias.data<float>(), whole.data<bool>(), int8, {0, 0}};
    {
        const Unlocked unlocked;
        sparse().multiply(handle.product, call);
    }
    for (int i = 0; i < 2; ++i) counts.data<int64_t>()[i] += call.counts[i];
    return true;
}

}  // namespace

HAVERSACK_BIND(sparse) {
    nb::class_<SparseHandle>(module, "SparseProduct");
    module.def("sparse_product", &handle, nb::arg("weights"), nb::arg("limits"), nb::arg("down").none(), nb::arg("up").none());
    module.def("sparse_multiply", &multiply, nb::arg("x"), nb::arg("product"), nb::arg("out"), nb::arg("add").none(),
               nb::arg("bias").none(), nb::arg("whole").none(), nb::arg("int8"), nb::arg("counts"));
}
