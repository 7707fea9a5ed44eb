"""What a codec does to the pixels of 8-bit pictures.

`patch_products`: the product of each filter with each patch of a picture, patches side by side, as a strided
convolution of equal kernel and stride gives it. `mix_colours`: each byte is looked up in its colour's table,
a 3 x 3 convolution goes over the three colours with zeros outside, what it gives is squashed where asked
(gain * size * x / (sigma + |x|)), and rounded to a byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.kernels._arguments import check_array, refuse, refuse_arrays
from haversack.kernels._native import native

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


def patch_products_twin(picture: U8, filters: F32, bias: F32) -> F32:
    """The definition of `patch_products`."""
    channels, patch, _ = filters.shape
    rows, columns = picture.shape[0] // patch, picture.shape[1] // patch
    cut = picture.reshape(rows, patch, columns, patch * 3).transpose(0, 2, 1, 3)
    flat = cut.reshape(rows * columns, -1).astype(np.float32)
    found = filters.reshape(channels, -1) @ flat.T + bias[:, None]
    return found.reshape(channels, rows, columns).astype(np.float32)


def mix_colours_twin(
    picture: U8, table: F32, weights: F32, bias: F32, offset: F32, squash: F32 | None = None
) -> U8:
    """The definition of `mix_colours`."""
    height, width, _ = picture.shape
    padded = np.zeros((height + 2, width + 2, 3), np.float32)
    for colour in range(3):
        padded[1:-1, 1:-1, colour] = table[colour][picture[..., colour]]
    found: NDArray[Any] = np.broadcast_to(bias, (height, width, 3)).astype(np.float32)
    for row in range(3):
        for column in range(3):
            found = found + padded[row : row + height, column : column + width] @ weights[:, row, column].T
    if squash is not None:
        size, sigma, gain = squash.T
        found = gain * size * found / (sigma + np.abs(found))
    rounded: U8 = np.rint(np.clip(found + offset, 0, 255)).astype(np.uint8)
    return rounded


def patch_products(picture: U8, filters: F32, bias: F32) -> F32:
    """picture u8[h, w, 3], sides multiples of the patch; filters f32[c, patch, patch * 3]; bias f32[c] ->
    f32[c, h / patch, w / patch]. Raises UserError for a shape or type that does not fit."""
    module = native()
    if module is not None and np.ndim(picture) == np.ndim(filters) == 3 and filters.shape[1]:
        patch = filters.shape[1]
        out = np.empty((len(filters), picture.shape[0] // patch, picture.shape[1] // patch), np.float32)
        if module.patch_products(picture, filters, bias, out):
            return out
    _check_picture("patch_products", picture)
    channels, patch, _ = check_array("patch_products", "filters", filters, (None, None, None)).shape
    check_array("patch_products", "filters", filters, (channels, patch, patch * 3))
    check_array("patch_products", "bias", bias, (channels,))
    if patch < 1 or picture.shape[0] % patch or picture.shape[1] % patch:
        refuse("patch_products", "picture", f"of sides that are multiples of {patch}", picture)
    if module is not None:
        refuse_arrays("patch_products")
    return patch_products_twin(picture, filters, bias)


def mix_colours(
    picture: U8, table: F32, weights: F32, bias: F32, offset: F32, squash: F32 | None = None
) -> U8:
    """picture u8[h, w, 3]; table f32[3, 256]; weights f32[3 out, 3 rows, 3 columns, 3 in]; bias and offset
    f32[3]; squash f32[3, 3] (size, sigma, gain of each colour) or None -> u8[h, w, 3]. Raises UserError for a
    shape or type that does not fit."""
    module = native()
    if module is not None:
        out = np.empty(np.shape(picture), np.uint8)
        if module.mix_colours(picture, table, weights, bias, squash, offset, out):
            return out
    _check_picture("mix_colours", picture)
    expected: list[tuple[str, Any, tuple[int, ...]]] = [
        ("table", table, (3, 256)),
        ("weights", weights, (3, 3, 3, 3)),
        ("bias", bias, (3,)),
        ("offset", offset, (3,)),
    ]
    for name, value, shape in expected + ([("squash", squash, (3, 3))] if squash is not None else []):
        check_array("mix_colours", name, value, shape)
    if module is not None:
        refuse_arrays("mix_colours")
    return mix_colours_twin(picture, table, weights, bias, offset, squash)


def _check_picture(op: str, picture: Any) -> None:
    check_array(op, "picture", picture, (None, None, 3), ("uint8",))
    if not picture.size:
        refuse(op, "picture", "a picture with pixels", picture)
