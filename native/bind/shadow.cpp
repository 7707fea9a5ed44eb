// What static int8 products leave out, for Python. A mismatch is answered with false: kernels/shadow.py words the error.
#include <nanobind/nanobind.h>

#include "bind/arrays.h"
#include "bind/handles.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

HAVERSACK_BIND(shadow) {
    nb::class_<ShadowHandle>(module, "Shadow")
        .def(nb::init<nb::object, nb::object, nb::object, float, bool, float, bool>(), nb::arg("matrix"), nb::arg("hot").none(),
             nb::arg("places").none(), nb::arg("scale"), nb::arg("inputs"), nb::arg("out_scale"), nb::arg("outputs"))
        .def("finish", &ShadowHandle::finish, nb::arg("x").none(), nb::arg("y").none(), nb::arg("out").none(),
             nb::arg("add").none(), nb::arg("bias").none());
}
