// Outliers and gathered inputs, for Python. A mismatch is answered with false: see bind/arrays.h.
#include "bind/handles.h"

#include <nanobind/nanobind.h>

#include "bind/arrays.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

bool gather(nb::handle x_, nb::handle at_, nb::handle out_) {
    const Array x(x_, Access::read), at(at_, Access::read), out(out_, Access::write);
    if (!x.of<float>(2) || !at.of<int32_t>(1) || !out.of<float>(2) || out.size(0) != x.size(0) || out.size(1) != at.size(0))
        return false;
    for (int64_t k = 0; k < at.size(0); ++k)
        if (at.data<int32_t>()[k] < 0 || at.data<int32_t>()[k] >= x.size(1)) return false;
    const Unlocked unlocked;
    outliers().gather(x.data<float>(), x.size(0), x.size(1), at.data<int32_t>(), at.size(0), out.data<float>());
    return true;
}

}  // namespace

HAVERSACK_BIND(outliers) {
    nb::class_<OutliersHandle>(module, "Outliers")
        .def(nb::init<nb::object, nb::object, nb::object, int64_t>(), nb::arg("starts"), nb::arg("at"), nb::arg("values"),
             nb::arg("columns"))
        .def("add", &OutliersHandle::add, nb::arg("x").none(), nb::arg("out").none());
    module.def("gather", &gather, nb::arg("x").none(), nb::arg("at").none(), nb::arg("out").none());
}
