// The Python module. Each kernel family binds itself: see register.h.
#include "bind/register.h"

NB_MODULE(_native, module) {
    module.doc() = "Haversack's native kernels; reached through haversack.kernels, never directly.";
    nanobind::set_leak_warnings(false);  // a daemon thread that still computes at exit holds its arguments: no news to a user
    for (auto bind : haversack::bindings()) bind(module);
}
