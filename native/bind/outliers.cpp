// Outliers and gathered inputs, for Python. A mismatch is answered with false: see bind/arrays.h.
#include "outliers.h"

#include <nanobind/nanobind.h>

#include "bind/arrays.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

// The arrays of the outliers of one matrix, looked through once so that a call need not.
class Outliers {
  public:
    Outliers(nb::object starts, nb::object at, nb::object values, int64_t columns)
        : kept_{starts, at, values}, starts_(starts, Access::read), at_(at, Access::read), values_(values, Access::read),
          columns_(columns) {
        bool fits = starts_.of<int32_t>(1) && starts_.size(0) > 1 && at_.of<uint16_t>(1) && values_.of<float>(1) &&
                    at_.size(0) == values_.size(0) && first()[0] == 0 && first()[rows()] == at_.size(0);
        for (int64_t row = 0; fits && row < rows(); ++row) fits = first()[row] <= first()[row + 1];
        for (int64_t i = 0; fits && i < at_.size(0); ++i) fits = at_.data<uint16_t>()[i] < columns;
        if (!fits) throw nb::value_error("outliers: starts, columns and values do not fit each other");
    }

    bool add(nb::handle x_, nb::handle out_) const {
        const Array x(x_, Access::read), out(out_, Access::write);
        if (!x.of<float>(2) || !out.of<float>(2) || x.size(1) != columns_ || out.size(1) != rows() || x.size(0) != out.size(0))
            return false;
        const Unlocked unlocked;
        outliers().add(x.data<float>(), x.size(0), columns_, first(), at_.data<uint16_t>(), values_.data<float>(), rows(),
                       out.data<float>());
        return true;
    }

  private:
    const int32_t *first() const { return starts_.data<int32_t>(); }
    int64_t rows() const { return starts_.size(0) - 1; }

    nb::object kept_[3];
    Array starts_, at_, values_;
    int64_t columns_;
};

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
    nb::class_<Outliers>(module, "Outliers")
        .def(nb::init<nb::object, nb::object, nb::object, int64_t>(), nb::arg("starts"), nb::arg("at"), nb::arg("values"),
             nb::arg("columns"))
        .def("add", &Outliers::add, nb::arg("x").none(), nb::arg("out").none());
    module.def("gather", &gather, nb::arg("x").none(), nb::arg("at").none(), nb::arg("out").none());
}
