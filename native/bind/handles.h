// What Python holds for a matrix, its outliers, its shadow and a cache layer: checked once, used by every call.
#pragma once
#include "bind/arrays.h"
#include "bind/register.h"
#include "cache.h"
#include "matmul.h"
#include "outliers.h"
#include "shadow.h"

namespace haversack {

// A matrix as the kernels take it; keeps the array that holds the bytes.
struct MatrixHandle {
    Weights weights;
    nanobind::object owner;
};

// Whether a scale and zero point for all inputs can be used.
inline bool sound(Fixed fixed) {
    return fixed.scale >= 1e-30f && fixed.scale < 1e30f && fixed.zero >= -128 && fixed.zero <= 127;
}

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

// What is added to the products of one int8 matrix, its arrays looked through once.
class ShadowHandle {
  public:
    ShadowHandle(nanobind::object matrix, nanobind::object hot, nanobind::object places, float scale, bool inputs,
                 float out_scale, bool outputs)
        : kept_{matrix, hot, places}, hot_(hot, Access::read), places_(places, Access::read) {
        const Weights &weights = nanobind::cast<const MatrixHandle &>(matrix).weights;
        bool fits = weights.kind == Kind::int8 && sound({scale, 0}) && (out_scale == 0.0f || sound({out_scale, 0})) &&
                    hot_.none() == places_.none();
        if (fits && !hot_.none()) {
            fits = hot_.of<int8_t>(2) && hot_.size(1) == weights.rows && places_.of<int32_t>(1) &&
                   places_.size(0) == weights.columns;
            for (int64_t k = 0; fits && k < weights.columns; ++k) fits = places_.data<int32_t>()[k] < hot_.size(0);
        }
        if (!fits) throw nanobind::value_error("shadow: matrix, hot rows, places and scales do not fit each other");
        shadow = {weights, hot_.data<int8_t>(), places_.data<int32_t>(), scale, inputs, out_scale, outputs};
    }

    bool finish(nanobind::handle x_, nanobind::handle y_, nanobind::handle out_, nanobind::handle add_,
                nanobind::handle bias_) const {
        const Array x(x_, Access::read), y(y_, Access::read), out(out_, Access::write);
        const Array add(add_, Access::read), bias(bias_, Access::read);
        if (!x.of<float>(2) || !y.of<float>(2) || !out.of<float>(2) || x.size(1) != shadow.weights.columns ||
            y.size(0) != x.size(0) || y.size(1) != shadow.weights.rows || !out.same_shape(y) ||
            !(add.none() || (add.of<float>(2) && add.same_shape(y))) ||
            !(bias.none() || (bias.of<float>(1) && bias.size(0) == shadow.weights.rows)))
            return false;
        const Unlocked unlocked;
        haversack::shadow().finish(shadow, x.data<float>(), x.size(0), y.data<float>(), out.data<float>(), add.data<float>(),
                                   bias.data<float>());
        return true;
    }

    Shadow shadow = {};

  private:
    nanobind::object kept_[3];
    Array hot_, places_;
};

}  // namespace haversack
