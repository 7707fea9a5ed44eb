// Matrix products, for Python. A mismatch is answered with false: kernels/products.py then words the error.
#include "matmul.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include "bind/handles.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Inputs = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bias = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Outputs = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

using Handle = MatrixHandle;

Handle handle(nb::object array, int kind, int64_t rows, int64_t columns, int64_t group, bool interleaved) {
    const Bytes bytes = nb::cast<Bytes>(array);
    const Weights weights = {bytes.data(), rows, columns, group, static_cast<Kind>(kind), interleaved};
    if (kind < 0 || kind > 6 || rows < 1 || columns < 1 || weights.packed() != (group > 0) || group % 32 != 0 ||
        (group > 0 && weights.kind != Kind::int4 && weights.kind != Kind::int3 && group != int8_columns) ||
        (interleaved && weights.kind != Kind::f32) || weights.bytes() != static_cast<int64_t>(bytes.size()))
        throw nb::value_error("matrix: kind, shape, group and bytes do not fit each other");
    return {weights, std::move(array)};
}

constexpr int most_products = 8;

bool sensible(Activations activations, Fixed fixed) { return activations != Activations::int8_static || sound(fixed); }

bool fits(const Inputs &x, const Handle &matrix, const Outputs &out, const Inputs *add, Activations activations) {
    const Weights &weights = matrix.weights;
    const size_t n = x.shape(0), rows = static_cast<size_t>(weights.rows);
    return x.shape(1) == static_cast<size_t>(weights.columns) && out.shape(0) == n && out.shape(1) == rows &&
           (!add || (add->shape(0) == n && add->shape(1) == rows)) && (weights.packed() || activations == Activations::f32);
}

bool one(const Inputs &x, const Handle &matrix, const Outputs &out, const std::optional<Inputs> &add, int activations,
         float static_scale, const std::optional<Bias> &bias, int static_zero) {
    const Activations how = static_cast<Activations>(activations);
    const Fixed fixed = {static_scale, static_zero};
    if (!sensible(how, fixed) || !fits(x, matrix, out, add ? &*add : nullptr, how)) return false;
    if (bias && static_cast<int64_t>(bias->size()) != matrix.weights.rows) return false;
    const Product product = {matrix.weights, out.data(), add ? add->data() : nullptr, bias ? bias->data() : nullptr};
    const Unlocked unlocked;
    matmul().products(x.data(), static_cast<int64_t>(x.shape(0)), &product, 1, how, fixed);
    return true;
}

bool many(const Inputs &x, nb::list matrices, nb::list outs, nb::object adds, int activations, float static_scale,
          nb::object biases, int static_zero) {
    const Activations how = static_cast<Activations>(activations);
    const Fixed fixed = {static_scale, static_zero};
    const size_t count = matrices.size();
    if (!sensible(how, fixed) || count > most_products || outs.size() != count) return false;
    if (!adds.is_none() && nb::len(adds) != count) return false;
    if (!biases.is_none() && nb::len(biases) != count) return false;
    Product products[most_products];
    for (size_t i = 0; i < count; ++i) {
        const Handle &matrix = nb::cast<const Handle &>(matrices[i]);
        Outputs out;
        if (!nb::try_cast<Outputs>(outs[i], out, false)) return false;
        const float *added = nullptr;
        if (!adds.is_none()) {
            const nb::object entry = adds[i];
            if (!entry.is_none()) {
                Inputs add;
                if (!nb::try_cast<Inputs>(entry, add, false) || !fits(x, matrix, out, &add, how)) return false;
                added = add.data();
            }
        }
        if (!fits(x, matrix, out, nullptr, how)) return false;
        const float *bias = nullptr;
        if (!biases.is_none()) {
            const nb::object entry = biases[i];
            if (!entry.is_none()) {
                Bias values;
                if (!nb::try_cast<Bias>(entry, values, false) || static_cast<int64_t>(values.size()) != matrix.weights.rows)
                    return false;
                bias = values.data();
            }
        }
        products[i] = {matrix.weights, out.data(), added, bias};
    }
    const Unlocked unlocked;
    matmul().products(x.data(), static_cast<int64_t>(x.shape(0)), products, static_cast<int>(count), how, fixed);
    return true;
}

}  // namespace

HAVERSACK_BIND(matmul) {
    nb::class_<Handle>(module, "Matrix");
    module.attr("MOST_PRODUCTS") = most_products;
    module.def("matrix", &handle, nb::arg("data"), nb::arg("kind"), nb::arg("rows"), nb::arg("columns"), nb::arg("group"),
               nb::arg("interleaved") = false);
    module.def("matmul", &one, nb::arg("x").noconvert(), nb::arg("matrix"), nb::arg("out").noconvert(),
               nb::arg("add").noconvert().none(), nb::arg("activations"), nb::arg("static_scale"),
               nb::arg("bias").noconvert().none() = nb::none(), nb::arg("static_zero") = 0);
    module.def("matmul_many", &many, nb::arg("x").noconvert(), nb::arg("matrices"), nb::arg("outs"), nb::arg("adds").none(),
               nb::arg("activations"), nb::arg("static_scale"), nb::arg("biases").none() = nb::none(),
               nb::arg("static_zero") = 0);
}
