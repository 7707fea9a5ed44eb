// What Python holds for a matrix, its outliers and a cache layer: checked once, used by every call.
#pragma once
#include "bind/arrays.h"
#include "bind/register.h"
#include "cache.h"
#include "matmul.h"
#include "outliers.h"

namespace haversack {

// A matrix as the kernels take it; keeps the array that holds the bytes.
struct MatrixHandle {
    Weights weights;
    nanobind::object owner;
};

// The four arrays of kernels/attend.py's CacheLayer.
struct LayerHandle {
    Array keys, values, key_scales, value_scales;
    Cache cache = {};
    bool fits = false;

    LayerHandle(nanobind::handle keys_, nanobind::handle values_, nanobind::handle key_scales_, nanobind::handle value_scales_,
                Access access)
        : keys(keys_, access), values(values_, access), key_scales(key_scales_, access), value_scales(value_scales_, access) {
        const bool f32 = keys.of<float>(3) && values.of<float>(), f16 = keys.of<Half>(3) && values.of<Half>();
        const bool int8 = keys.of<int8_t>(3) && values.of<int8_t>();
        if ((!f32 && !f16 && !int8) || !values.same_shape(keys) || keys.numbers() == 0) return;
        if (int8 ? !scales_fit(key_scales) || !scales_fit(value_scales) : !key_scales.none() || !value_scales.none()) return;
        cache = {keys.data<void>(),
                 values.data<void>(),
                 key_scales.data<float>(),
                 value_scales.data<float>(),
                 keys.size(0),
                 keys.size(1),
                 keys.size(2),
                 f32   ? CacheKind::f32
                 : f16 ? CacheKind::f16
                       : CacheKind::int8};
        fits = true;
    }
    bool scales_fit(const Array &scales) const {
        return scales.of<float>(2) && scales.size(0) == keys.size(0) && scales.size(1) == keys.size(1);
    }
    bool holds(int64_t start, int64_t count) const { return start >= 0 && count >= 0 && start <= cache.capacity - count; }
    // [n, kv_heads, width]
    bool takes(const Array &x) const { return x.of<float>(3) && x.size(1) == cache.kv_heads && x.size(2) == cache.width; }
};

// The arrays of the outliers of one matrix, looked through once so that a call need not.
class OutliersHandle {
  public:
    OutliersHandle(nanobind::object starts, nanobind::object at, nanobind::object values, int64_t columns)
        : kept_{starts, at, values}, starts_(starts, Access::read), at_(at, Access::read), values_(values, Access::read),
          columns_(columns) {
        bool fits = starts_.of<int32_t>(1) && starts_.size(0) > 1 && at_.of<uint16_t>(1) && values_.of<float>(1) &&
                    at_.size(0) == values_.size(0) && first()[0] == 0 && first()[rows()] == at_.size(0);
        for (int64_t row = 0; fits && row < rows(); ++row) fits = first()[row] <= first()[row + 1];
        for (int64_t i = 0; fits && i < at_.size(0); ++i) fits = inputs()[i] < columns;
        if (!fits) throw nanobind::value_error("outliers: starts, columns and values do not fit each other");
    }

    bool add(nanobind::handle x_, nanobind::handle out_) const {
        const Array x(x_, Access::read), out(out_, Access::write);
        if (!x.of<float>(2) || !out.of<float>(2) || x.size(1) != columns_ || out.size(1) != rows() || x.size(0) != out.size(0))
            return false;
        const Unlocked unlocked;
        outliers().add(x.data<float>(), x.size(0), columns_, first(), inputs(), values(), rows(), out.data<float>());
        return true;
    }

    const int32_t *first() const { return starts_.data<int32_t>(); }
    const uint16_t *inputs() const { return at_.data<uint16_t>(); }
    const float *values() const { return values_.data<float>(); }
    int64_t rows() const { return starts_.size(0) - 1; }
    int64_t columns() const { return columns_; }

  private:
    nanobind::object kept_[3];
    Array starts_, at_, values_;
    int64_t columns_;
};

}  // namespace haversack
