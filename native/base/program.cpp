#include "base/program.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "norms.h"
#include "outliers.h"

namespace haversack {

Workspace::Workspace(std::vector<int64_t> widths) : widths_(std::move(widths)), buffers_(widths_.size()) {}

int Workspace::append(int64_t width) {
    widths_.push_back(width);
    buffers_.emplace_back();
    rows_ = 0;
    return count() - 1;
}

void Workspace::Free::operator()(float *p) const { std::free(p); }

void Workspace::reserve(int64_t n) {
    if (n <= rows_) return;
    for (size_t i = 1; i < widths_.size(); ++i) {
        void *data = nullptr;
        buffers_[i].reset();
        if (posix_memalign(&data, 64, static_cast<size_t>(n * widths_[i]) * sizeof(float) + 64) != 0) throw std::bad_alloc();
        buffers_[i].reset(static_cast<float *>(data));
    }
    rows_ = n;
}

void Program::run(const Step &step) const {
    const int64_t n = step.n;
    space_->reserve(n);
    const auto at = [&](int buffer) { return buffer == 0 ? step.hidden : space_->at(buffer); };
    std::vector<Product> list;
    for (const Operation &op : operations_) {
        float *const x = at(op.x), *const out = at(op.out);
        const int64_t width = space_->width(op.x), size = n * width;
        switch (op.kind) {
        case Operation::rms_norm: norms().rms_norm(x, op.one, op.eps, op.offset, out, n, width); break;
        case Operation::layer_norm: norms().layer_norm(x, op.one, op.two, op.eps, out, n, width); break;
        case Operation::products:
            list.clear();
            for (const Operation::Matrix &matrix : op.matrices) {
                float *const to = at(matrix.out);
                list.push_back({matrix.weights, to, matrix.add ? to : nullptr, matrix.bias});
            }
            matmul().products(x, n, list.data(), static_cast<int>(list.size()), op.how, op.fixed);
            break;
        case Operation::rope_write: {
            const NewEntries entries = {x,          at(op.y),       at(op.z), n,      op.heads, step.cos, step.sin,
                                        step.pairs, op.interleaved, op.one,   op.two, op.eps,   op.offset};
            if (step.runs)
                write_runs(*step.runs, entries);
            else
                cache().rope_write(step.cache, step.start, entries);
            break;
        }
        case Operation::attention: {
            const Attention call = {x, out, n, op.heads, step.length, step.fresh, step.first, step.mask, op.scale, op.softcap};
            if (step.runs)
                attend_runs(*step.runs, call);
            else
                attend().attention(step.cache, call);
            break;
        }
        case Operation::gate: gates().gate(x, op.y ? at(op.y) : nullptr, out, size, op.activation); break;
        case Operation::add:
            for (int64_t i = 0; i < size; ++i) out[i] += x[i];
            break;
        case Operation::outliers: outliers().add(x, n, width, op.places, op.columns, op.one, space_->width(op.out), out); break;
        case Operation::gather: outliers().gather(x, n, width, op.places, space_->width(op.out), out); break;
        case Operation::shadow: shadow().finish(op.missed, x, n, at(op.y), out, op.adds ? out : nullptr, op.one); break;
        case Operation::copy: std::memcpy(out, x, static_cast<size_t>(size) * sizeof(float)); break;
        }
    }
}

}  // namespace haversack
