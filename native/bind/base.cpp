// Threads and instruction sets, for Python.
#include "base/isa.h"
#include "base/pool.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

HAVERSACK_BIND(base) {
    module.def("set_threads", [](int n) { set_threads(n); }, nb::arg("n"));
    module.def("threads", [] { return threads(); });
    module.def("isa", [] { return active_isa_name(); });
    module.def("select_isa", [](const char *name) { return select_isa(name); }, nb::arg("name"));
    module.def("isa_names", [] {
        nb::list names;
        for (const char *const *name = isa_names(); *name; ++name)
            if (isa_supported(*name)) names.append(*name);
        return names;
    });
    // Runs `total` empty pieces: what a call through the pool costs, for tests and for measuring a machine.
    module.def(
        "pool_round",
        [](long total) {
            const Unlocked unlocked;
            parallel(total, 1, [](int64_t, int64_t) {});
        },
        nb::arg("total"));
}
