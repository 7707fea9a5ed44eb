// A kernel family adds itself to the Python module with HAVERSACK_BIND, so that adding a family touches no list.
#pragma once
#include <nanobind/nanobind.h>
#include <unistd.h>

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
// While one of these lives, other Python threads run. When the interpreter has ended meanwhile, Python 3.11 to 3.13 makes a
// daemon thread exit on its return, by unwinding; C++ frames do not survive that, so the thread rests here instead, until
// the process is gone a moment later.
class Unlocked {
  public:
    Unlocked() : state_(PyEval_SaveThread()) {}
    ~Unlocked() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) pause();
        }
    }
    Unlocked(const Unlocked &) = delete;
    Unlocked &operator=(const Unlocked &) = delete;

  private:
    PyThreadState *state_;
};
}  // namespace haversack

#define HAVERSACK_BIND(family)                                                                                                 \
    static void bind_##family(nanobind::module_ &module);                                                                      \
    static const haversack::Registration registration_##family(bind_##family);                                                 \
    static void bind_##family(nanobind::module_ &module)
