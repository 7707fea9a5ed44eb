// Products with the planes of nested matrices, for Python. A mismatch is answered with false: see bind/arrays.h.
#include "nested.h"

#include <nanobind/nanobind.h>

#include "bind/arrays.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

// A plane as the kernel takes it; keeps the array that holds its bytes.
struct NestedHandle {
    NestedPlane plane = {};
    nb::object owner;
};

NestedHandle handle(nb::object data_, int64_t rows, int64_t columns, int64_t group, int bits, bool base) {
    const Array data(data_, Access::read);
    NestedHandle made;
    bool fits = data.of<uint8_t>(1) && rows >= 1 && columns >= 1 && group >= 1 && bits >= 1 && bits <= 8 && (base || bits == 1);
    if (fits) made.plane = {data.data<uint8_t>(), rows, columns, group, bits, base};
    if (!fits || made.plane.bytes() != data.numbers()) throw nb::value_error("nested: shape, bits and bytes do not fit");
    made.owner = std::move(data_);
    return made;
}

bool add(nb::handle x_, const NestedHandle &handle, nb::handle out_) {
    const Array x(x_, Access::read), out(out_, Access::write);
    const NestedPlane &plane = handle.plane;
    if (!x.of<float>(2) || !out.of<float>(2) || x.size(1) != plane.columns || out.size(1) != plane.rows ||
        out.size(0) != x.size(0))
        return false;
    const Unlocked unlocked;
    nested().add(plane, x.data<float>(), x.size(0), out.data<float>());
    return true;
}

}  // namespace

HAVERSACK_BIND(nested) {
    nb::class_<NestedHandle>(module, "NestedPlane");
    module.def("nested_plane", &handle, nb::arg("data"), nb::arg("rows"), nb::arg("columns"), nb::arg("group"), nb::arg("bits"),
               nb::arg("base"));
    module.def("nested_add", &add, nb::arg("x").none(), nb::arg("plane"), nb::arg("out").none());
}
