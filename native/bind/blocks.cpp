// GGUF's blocks put into the kernels' layout, for Python. A mismatch is answered with false.
#include "base/blocks.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>

#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Order = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

bool interleave(const Bytes &from, int64_t rows, int64_t columns, int bits, const std::optional<Order> &order, const Out &out) {
    if ((bits != 4 && bits != 8) || rows < 1 || columns < 32 || columns % 32) return false;
    const int64_t groups = columns / 32, stored = bits == 4 ? 18 : 34, block = (bits == 4 ? 256 : 512) + 32;
    if (static_cast<int64_t>(from.size()) != rows * groups * stored) return false;
    if (static_cast<int64_t>(out.size()) != (rows + 15) / 16 * groups * block) return false;
    if (order) {
        if (static_cast<int64_t>(order->size()) != rows) return false;
        for (int64_t i = 0; i < rows; ++i)
            if (order->data()[i] < 0 || order->data()[i] >= rows) return false;
    }
    const Unlocked unlocked;
    interleave_blocks(from.data(), rows, columns, bits, order ? order->data() : nullptr, out.data());
    return true;
}
}  // namespace

HAVERSACK_BIND(blocks) {
    module.def("interleave_blocks", &interleave, nb::arg("blocks").noconvert(), nb::arg("rows"), nb::arg("columns"),
               nb::arg("bits"), nb::arg("order").noconvert().none(), nb::arg("out").noconvert());
}
