// A kernel family adds itself to the Python module with HAVERSACK_BIND, so that adding a family touches no list.
#pragma once
#include <nanobind/nanobind.h>

#include <vector>

namespace haversack {
using Binding = void (*)(nanobind::module_ &);

inline std::vector<Binding> &bindings() {
    static std::vector<Binding> list;
    return list;
}

struct Registration {
    explicit Registration(Binding binding) { bindings().push_back(binding); }
};
}  // namespace haversack

#define HAVERSACK_BIND(family)                                                                        \
    static void bind_##family(nanobind::module_ &module);                                            \
    static const haversack::Registration registration_##family(bind_##family);                       \
    static void bind_##family(nanobind::module_ &module)
