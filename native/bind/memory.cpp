// Weights copied to huge pages, for Python.
#include "base/memory.h"

#include <nanobind/ndarray.h>

#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {
struct Block {
    void *data;
    size_t bytes;
};
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
}  // namespace

HAVERSACK_BIND(memory) {
    module.def(
        "huge_copy",
        [](Bytes source) {
            const size_t bytes = source.size();
            void *data = huge_allocate(bytes);
            if (!data) throw std::bad_alloc();
            {
                const Unlocked unlocked;
                copy_dropping(data, source.data(), bytes);
            }
            nb::capsule owner(new Block{data, bytes}, [](void *p) noexcept {
                Block *block = static_cast<Block *>(p);
                huge_free(block->data, block->bytes);
                delete block;
            });
            return nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(data, {bytes}, owner);
        },
        nb::arg("source"));
}
