// numpy arrays as kernels want them, through the buffer protocol: no conversion, no copy. A kernel function that is called with
// what does not fit returns false, and its Python side words the error (kernels/_arguments.py).
#pragma once
#include <nanobind/nanobind.h>

#include <cstdint>
#include <cstring>

namespace haversack {

enum class Access { read, write };

template <typename T>
struct Format;
template <>
struct Format<float> {
    static constexpr const char *letters = "f";
};
template <>
struct Format<double> {
    static constexpr const char *letters = "d";
};
template <>
struct Format<int32_t> {
    static constexpr const char *letters = "i";
};
template <>
struct Format<int64_t> {
    static constexpr const char *letters = sizeof(long) == 8 ? "lq" : "q";
};
template <>
struct Format<bool> {
    static constexpr const char *letters = "?";
};
struct Half {};
template <>
struct Format<Half> {
    static constexpr const char *letters = "e";
};
template <>
struct Format<int8_t> {
    static constexpr const char *letters = "b";
};
template <>
struct Format<uint8_t> {
    static constexpr const char *letters = "B";
};
template <>
struct Format<uint16_t> {
    static constexpr const char *letters = "H";
};

// A contiguous array, held as long as this object lives. Absent when None was given.
class Array {
  public:
    Array(nanobind::handle value, Access access) {
        if (value.is_none()) {
            none_ = true;
            return;
        }
        const int flags = PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (access == Access::write ? PyBUF_WRITABLE : 0);
        held_ = PyObject_GetBuffer(value.ptr(), &view_, flags) == 0;
        if (!held_) PyErr_Clear();
    }
    ~Array() {
        if (held_) PyBuffer_Release(&view_);
    }
    Array(const Array &) = delete;
    Array &operator=(const Array &) = delete;

    bool none() const { return none_; }
    template <typename T>
    bool of() const {
        return held_ && view_.format && view_.format[0] && !view_.format[1] && std::strchr(Format<T>::letters, view_.format[0]);
    }
    template <typename T>
    bool of(int dimensions) const {
        return of<T>() && view_.ndim == dimensions;
    }
    int dimensions() const { return view_.ndim; }
    int64_t size(int dimension) const { return view_.shape[dimension]; }
    int64_t last() const { return view_.ndim ? view_.shape[view_.ndim - 1] : 0; }
    int64_t numbers() const { return view_.len / view_.itemsize; }
    bool same_shape(const Array &other) const {
        return view_.ndim == other.view_.ndim &&
               std::memcmp(view_.shape, other.view_.shape, sizeof(Py_ssize_t) * static_cast<size_t>(view_.ndim)) == 0;
    }
    template <typename T>
    T *data() const {
        return held_ ? static_cast<T *>(view_.buf) : nullptr;
    }

  private:
    Py_buffer view_ = {};
    bool held_ = false, none_ = false;
};

}  // namespace haversack
