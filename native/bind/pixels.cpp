// Pixels of 8-bit pictures, for Python. A mismatch is answered with false: see bind/arrays.h.
#include "pixels.h"

#include <nanobind/nanobind.h>

#include "bind/arrays.h"
#include "bind/register.h"

namespace nb = nanobind;
using namespace haversack;

namespace {

bool patch_products(nb::handle picture_, nb::handle filters_, nb::handle bias_, nb::handle out_) {
    const Array picture(picture_, Access::read), filters(filters_, Access::read), bias(bias_, Access::read),
        out(out_, Access::write);
    if (!picture.of<uint8_t>(3) || !filters.of<float>(3) || !bias.of<float>(1) || !out.of<float>(3)) return false;
    const int64_t patch = filters.size(1), channels = filters.size(0);
    if (patch < 1 || filters.size(2) != patch * 3 || picture.size(2) != 3 || picture.size(0) % patch ||
        picture.size(1) % patch || bias.size(0) != channels || out.size(0) != channels ||
        out.size(1) != picture.size(0) / patch || out.size(2) != picture.size(1) / patch || !picture.numbers())
        return false;
    const PatchCall call = {picture.data<uint8_t>(), picture.size(0),    picture.size(1), patch,
                            filters.data<float>(),   bias.data<float>(), channels,        out.data<float>()};
    const Unlocked unlocked;
    pixels().patch_products(call);
    return true;
}

bool mix_colours(nb::handle picture_, nb::handle table_, nb::handle weights_, nb::handle bias_, nb::handle squash_,
                 nb::handle offset_, nb::handle out_) {
    const Array picture(picture_, Access::read), table(table_, Access::read), weights(weights_, Access::read),
        bias(bias_, Access::read), squash(squash_, Access::read), offset(offset_, Access::read), out(out_, Access::write);
    if (!picture.of<uint8_t>(3) || picture.size(2) != 3 || !out.of<uint8_t>(3) || !out.same_shape(picture) ||
        !picture.numbers() || !table.of<float>(2) || table.size(0) != 3 || table.size(1) != 256 || !weights.of<float>(4) ||
        weights.numbers() != 81 || !bias.of<float>(1) || bias.size(0) != 3 || !offset.of<float>(1) || offset.size(0) != 3 ||
        !(squash.none() || (squash.of<float>(2) && squash.size(0) == 3 && squash.size(1) == 3)))
        return false;
    const ColourCall call = {picture.data<uint8_t>(), picture.size(0),       picture.size(1),
                             table.data<float>(),     weights.data<float>(), bias.data<float>(),
                             squash.data<float>(),    offset.data<float>(),  out.data<uint8_t>()};
    const Unlocked unlocked;
    pixels().mix_colours(call);
    return true;
}

}  // namespace

HAVERSACK_BIND(pixels) {
    module.def("patch_products", &patch_products, nb::arg("picture").none(), nb::arg("filters").none(), nb::arg("bias").none(),
               nb::arg("out").none());
    module.def("mix_colours", &mix_colours, nb::arg("picture").none(), nb::arg("table").none(), nb::arg("weights").none(),
               nb::arg("bias").none(), nb::arg("squash").none(), nb::arg("offset").none(), nb::arg("out").none());
}
