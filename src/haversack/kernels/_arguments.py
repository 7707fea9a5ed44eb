"""Checks of arguments: they find what does not fit and word it.

A native kernel answers a call that does not fit with false, and then these run; for a numpy twin they run
before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from haversack.core.errors import UserError
from haversack.kernels._matrix import Array

_SHORT = {"float32": "f32", "float16": "f16", "float64": "f64", "int32": "i32", "int64": "i64"}


def described(value: Any) -> str:
    """`f32[2, 3]`, or the type's name for what is no array."""
    if not isinstance(value, np.ndarray):
        return type(value).__name__
    return f"{_SHORT.get(value.dtype.name, value.dtype.name)}[{', '.join(map(str, value.shape))}]"


def refuse_arrays(op: str) -> NoReturn:
    """For a call that fits in every shape and type and that the native kernel refused all the same."""
    raise UserError(
        f"{op}: arrays must be C-contiguous, and writable where they are written to", field="arrays"
    )


def refuse(op: str, name: str, expected: str, value: Any) -> NoReturn:
    raise UserError(f"{op}: {name} must be {expected}, got {described(value)}", field=name)


def check_array(
    op: str,
    name: str,
    value: Any,
    shape: Sequence[int | None],
    dtypes: tuple[str, ...] = ("float32",),
) -> Array:
    """`value` when it is an array of `shape` (None: any size) and one of `dtypes`, else UserError."""
    fits = (
        isinstance(value, np.ndarray)
        and value.dtype.name in dtypes
        and value.ndim == len(shape)
        and all(wanted in (None, size) for wanted, size in zip(shape, value.shape, strict=True))
    )
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        kinds = " or ".join(_SHORT.get(dtype, dtype) for dtype in dtypes)
        refuse(op, name, f"{kinds}[{sizes}]", value)
    found: Array = value
    return found


def check_rows(op: str, name: str, value: Any) -> Array:
    """`value` when it is f32 with rows of at least one number, else UserError."""
    if (
        not isinstance(value, np.ndarray)
        or value.dtype != np.float32
        or value.ndim < 1
        or value.shape[-1] < 1
    ):
        refuse(op, name, "f32[..., d]", value)
    found: Array = value
    return found


def check_out(op: str, out: Any, shape: tuple[int, ...]) -> None:
    """`out` is None or f32 of `shape`."""
    if out is not None:
        check_array(op, "out", out, shape)


def placed(result: Array, out: Array | None) -> Array:
    """`result` as f32, written to `out` when there is one."""
    if out is None:
        return result.astype(np.float32, copy=False)
    out[...] = result
    return out
