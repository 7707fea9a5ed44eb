// Programs, for Python: run/_program.py makes one for each block and runs it every step. What does not fit when a program is
// made raises ValueError; what does not fit in run() is answered with false.
#include "base/program.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include "bind/arrays.h"
#include "bind/handles.h"
#include "bind/pooled.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

[[noreturn]] void unfit(const char *what) { throw nb::value_error(what); }

class Builder {
  public:
    Builder(std::shared_ptr<Workspace> space, int64_t kv_heads, int64_t head_width)
        : program_(std::move(space)), kv_heads_(kv_heads), head_width_(head_width) {}

    void norm(int x, int out, nb::object weight, nb::object bias, float eps, float offset, bool layer) {
        Operation op = made(layer ? Operation::layer_norm : Operation::rms_norm, x, out);
        if (width(out) != width(x)) unfit("norm: buffers differ in width");
        op.one = vector(weight, width(x));
        op.two = bias.is_none() ? nullptr : vector(bias, width(x));
        op.eps = eps;
        op.offset = offset;
        append(std::move(op));
    }
    void products(int x, nb::list matrices, const std::vector<int> &outs, nb::list biases, bool add, int activations,
                  float static_scale, int static_zero) {
        Operation op = made(Operation::products, x, x);
        op.how = static_cast<Activations>(activations);
        op.fixed = {static_scale, static_zero};
        if (matrices.size() != outs.size() || matrices.size() != biases.size()) unfit("products: lists differ in length");
        if (op.how == Activations::int8_static && !sound(op.fixed)) unfit("products: a fixed scale or zero does not fit");
        for (size_t i = 0; i < outs.size(); ++i) {
            const nb::object matrix = matrices[i], bias = biases[i];
            const Weights &weights = nb::cast<const MatrixHandle &>(matrix).weights;
            if (weights.columns != width(x) || weights.rows != width(outs[i])) unfit("products: a matrix does not fit");
            if (!weights.packed() && op.how != Activations::f32) unfit("products: float matrices take f32 activations");
            kept_.append(matrix);
            op.matrices.push_back({weights, outs[i], bias.is_none() ? nullptr : vector(bias, weights.rows), add});
        }
        append(std::move(op));
    }
    void rope_write(int q, int k, int v, nb::object q_norm, nb::object k_norm, float eps, float offset, bool interleaved) {
        Operation op = made(Operation::rope_write, q, q);
        if (width(q) % head_width_ || width(k) != kv_heads_ * head_width_ || width(v) != width(k)) unfit("rope_write: widths");
        op.y = k;
        op.z = v;
        op.heads = width(q) / head_width_;
        op.one = q_norm.is_none() ? nullptr : vector(q_norm, head_width_);
        op.two = k_norm.is_none() ? nullptr : vector(k_norm, head_width_);
        op.eps = eps;
        op.offset = offset;
        op.interleaved = interleaved;
        append(std::move(op));
        caches_ = true;
    }
    void attention(int q, int out, float scale, float softcap) {
        Operation op = made(Operation::attention, q, out);
        op.heads = width(q) / head_width_;
        if (width(q) != width(out) || width(q) % head_width_ || op.heads % kv_heads_) unfit("attention: widths");
        op.scale = scale;
        op.softcap = softcap;
        append(std::move(op));
        caches_ = true;
    }
    void gate(int x, int up, int out, int kind) {
        Operation op = made(Operation::gate, x, out);
        if (width(x) != width(out) || kind < 0 || kind > 3 || (up && width(up) != width(x))) unfit("gate: widths or kind");
        op.y = up;
        op.activation = static_cast<Activation>(kind);
        append(std::move(op));
    }
    void outliers(int x, nb::object outliers, int out) {
        Operation op = made(Operation::outliers, x, out);
        const OutliersHandle &handle = nb::cast<const OutliersHandle &>(outliers);
        if (handle.columns() != width(x) || handle.rows() != width(out) || x == out) unfit("outliers: widths");
        op.places = handle.first();
        op.columns = handle.inputs();
        op.one = handle.values();
        kept_.append(outliers);
        append(std::move(op));
    }
    void gather(int x, nb::object at, int out) {
        Operation op = made(Operation::gather, x, out);
        const Array places(at, Access::read);
        bool fits = places.of<int32_t>(1) && places.size(0) == width(out) && x != out;
        for (int64_t k = 0; fits && k < places.size(0); ++k)
            fits = places.data<int32_t>()[k] >= 0 && places.data<int32_t>()[k] < width(x);
        if (!fits) unfit("gather: widths or places");
        op.places = places.data<int32_t>();
        kept_.append(at);
        append(std::move(op));
    }
    void shadow(int x, nb::object shadow, int y, int out, nb::object bias, bool add) {
        Operation op = made(Operation::shadow, x, out);
        const ShadowHandle &handle = nb::cast<const ShadowHandle &>(shadow);
        const Weights &weights = handle.shadow.weights;
        if (weights.columns != width(x) || weights.rows != width(y) || width(out) != width(y) || x == out)
            unfit("shadow: widths");
        op.y = y;
        op.missed = handle.shadow;
        op.one = bias.is_none() ? nullptr : vector(bias, weights.rows);
        op.adds = add;
        kept_.append(shadow);
        append(std::move(op));
    }
    void add(int x, int out) { pair(Operation::add, x, out); }
    void copy(int x, int out) { pair(Operation::copy, x, out); }

    bool run(nb::handle hidden_, nb::handle layer_, nb::handle cos_, nb::handle sin_, int64_t start, int64_t length,
             nb::handle first_, nb::handle mask_) const {
        const Array hidden(hidden_, Access::write), cos(cos_, Access::read), sin(sin_, Access::read);
        const Array first(first_, Access::read), mask(mask_, Access::read);
        if (!hidden.of<float>(2) || hidden.size(1) != width(0)) return false;
        Step step = {};
        step.hidden = hidden.data<float>();
        step.n = hidden.size(0);
        if (step.n == 0) return true;
        if (caches_) {
            const LayerHandle *layer = nullptr;
            if (!nb::try_cast(layer_, layer) || !layer) return false;
            if (layer->cache.kv_heads != kv_heads_ || layer->cache.width != head_width_) return false;
            if (cos.none() != sin.none()) return false;
            if (!cos.none() && !(cos.of<float>(2) && sin.of<float>(2) && sin.same_shape(cos) && cos.size(0) == step.n &&
                                 cos.size(1) >= 1 && 2 * cos.size(1) <= head_width_))
                return false;
            if (!first.none() && !(first.of<int64_t>(1) && first.size(0) == step.n)) return false;
            if (!mask.none() && !(mask.of<bool>(2) && mask.size(0) == step.n)) return false;
            step.cache = layer->cache;
            step.start = start;
            step.cos = cos.data<float>();
            step.sin = sin.data<float>();
            step.pairs = cos.none() ? 0 : cos.size(1);
            step.length = length;
            step.fresh = mask.none() ? step.n : mask.size(1);
            step.first = first.data<int64_t>();
            step.mask = mask.data<uint8_t>();
            if (!layer->holds(start, step.n) || !layer->holds(length, step.fresh)) return false;
        }
        const Unlocked unlocked;
        program_.run(step);
        return true;
    }

    // For rows in several caches: `runs` i64 [count, 4] of the caches in `pool`.
    bool run_pooled(nb::handle hidden_, nb::handle pool_, nb::handle cos_, nb::handle sin_, nb::handle runs_,
                    nb::handle first_) const {
        const Array hidden(hidden_, Access::write), cos(cos_, Access::read), sin(sin_, Access::read);
        const Array first(first_, Access::read), given(runs_, Access::read);
        if (!hidden.of<float>(2) || hidden.size(1) != width(0) || !caches_) return false;
        Step step = {};
        step.hidden = hidden.data<float>();
        step.n = hidden.size(0);
        if (step.n == 0) return true;
        const PoolHandle *pool = nullptr;
        if (!nb::try_cast(pool_, pool) || !pool || !pool->runs_fit(given, step.n)) return false;
        if (pool->whole.kv_heads != kv_heads_ || pool->whole.width != head_width_) return false;
        if (!tables_fit(cos, sin, step.n) || (!first.none() && !(first.of<int64_t>(1) && first.size(0) == step.n)))
            return false;
        const Runs runs = pool->runs(given);
        step.cos = cos.data<float>();
        step.sin = sin.data<float>();
        step.pairs = cos.none() ? 0 : cos.size(1);
        step.first = first.data<int64_t>();
        step.runs = &runs;
        const Unlocked unlocked;
        program_.run(step);
        return true;
    }

  private:
    bool tables_fit(const Array &cos, const Array &sin, int64_t n) const {
        if (cos.none() || sin.none()) return cos.none() == sin.none();
        return cos.of<float>(2) && sin.of<float>(2) && sin.same_shape(cos) && cos.size(0) == n && cos.size(1) >= 1 &&
               2 * cos.size(1) <= head_width_;
    }
    Operation made(Operation::Kind kind, int x, int out) const {
        check(x);
        check(out);
        Operation op = {};
        op.kind = kind;
        op.x = x;
        op.out = out;
        return op;
    }
    void check(int buffer) const {
        if (buffer < 0 || buffer >= program_.space().count()) unfit("there is no such buffer");
    }
    int64_t width(int buffer) const {
        check(buffer);
        return program_.space().width(buffer);
    }
    void pair(Operation::Kind kind, int x, int out) {
        Operation op = made(kind, x, out);
        if (width(x) != width(out)) unfit("buffers differ in width");
        append(std::move(op));
    }
    const float *vector(const nb::object &array, int64_t size) {
        const Array found(array, Access::read);
        if (!found.of<float>(1) || found.size(0) != size) unfit("a vector does not fit");
        kept_.append(array);
        return found.data<float>();
    }
    void append(Operation op) { program_.append(std::move(op)); }

    Program program_;
    const int64_t kv_heads_, head_width_;
    bool caches_ = false;
    nb::list kept_;  // the matrices and vectors that operations point into
};

}  // namespace

HAVERSACK_BIND(program) {
    nb::class_<Workspace>(module, "Workspace")
        .def(nb::init<std::vector<int64_t>>(), nb::arg("widths"))
        .def("append", &Workspace::append, nb::arg("width"));
    nb::class_<Builder>(module, "Program")
        .def(nb::init<std::shared_ptr<Workspace>, int64_t, int64_t>(), nb::arg("space"), nb::arg("kv_heads"),
             nb::arg("head_width"))
        .def("norm", &Builder::norm, nb::arg("x"), nb::arg("out"), nb::arg("weight"), nb::arg("bias").none(), nb::arg("eps"),
             nb::arg("offset"), nb::arg("layer"))
        .def("products", &Builder::products, nb::arg("x"), nb::arg("matrices"), nb::arg("outs"), nb::arg("biases"),
             nb::arg("add"), nb::arg("activations"), nb::arg("static_scale") = 0.0f, nb::arg("static_zero") = 0)
        .def("rope_write", &Builder::rope_write, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("q_norm").none(),
             nb::arg("k_norm").none(), nb::arg("eps"), nb::arg("offset"), nb::arg("interleaved"))
        .def("attention", &Builder::attention, nb::arg("q"), nb::arg("out"), nb::arg("scale"), nb::arg("softcap"))
        .def("gate", &Builder::gate, nb::arg("x"), nb::arg("up"), nb::arg("out"), nb::arg("kind"))
        .def("outliers", &Builder::outliers, nb::arg("x"), nb::arg("outliers"), nb::arg("out"))
        .def("gather", &Builder::gather, nb::arg("x"), nb::arg("at"), nb::arg("out"))
        .def("shadow", &Builder::shadow, nb::arg("x"), nb::arg("shadow"), nb::arg("y"), nb::arg("out"), nb::arg("bias").none(),
             nb::arg("add"))
        .def("add", &Builder::add, nb::arg("x"), nb::arg("out"))
        .def("copy", &Builder::copy, nb::arg("x"), nb::arg("out"))
        .def("run_pooled", &Builder::run_pooled, nb::arg("hidden").none(), nb::arg("pool").none(), nb::arg("cos").none(),
             nb::arg("sin").none(), nb::arg("runs").none(), nb::arg("first").none())
        .def("run", &Builder::run, nb::arg("hidden").none(), nb::arg("layer").none(), nb::arg("cos").none(),
             nb::arg("sin").none(), nb::arg("start"), nb::arg("length"), nb::arg("first").none(), nb::arg("mask").none());
}
