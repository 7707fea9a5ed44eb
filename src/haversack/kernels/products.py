"""Matrix products: outputs[n, rows] = x[n, columns] times the matrix, transposed.

Activations are `f32`; `int8-dynamic`, where each token's inputs are rounded to int8 with one scale for
every group of columns (the matrix's own group for int4 and int3, 32 columns for int8); or `int8-static`,
where one given scale serves all. Integer sums inside a group are exact; groups are added in order, in f32.

A token whose input is NaN or infinite gives NaN in all outputs of that token with int8 activations, and
whatever f32 arithmetic gives with f32 activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from haversack.core.errors import UserError, not_allowed
from haversack.kernels._matrix import FLOAT_BYTES, INT8_COLUMNS, KINDS, Array, Matrix, unpack, unpack_integers
from haversack.kernels._native import native

ACTIVATIONS = ("f32", "int8-dynamic", "int8-static")
_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
GROUPED_INT8 = len(KINDS)
"""The native code of int8 in groups; the kinds without come first, in order."""
SMALLEST = np.float32(1e-30)
"""A group of inputs whose largest input is below this counts as all zeros."""


def quantize_activations(x: Array, group: int, static_scale: float | None = None) -> tuple[Array, Array]:
    """x f32[n, columns] -> integers int8[n, groups, group] and scales f32[n, groups]; the tail is padded
    with zeros.

    Dynamic: scale = largest / 127, integer = nearest even of x * (127 / largest). A group that holds NaN or
    infinity gets scale NaN and integers 0. Static: integer = nearest even of x * (1 / scale), clipped to
    -127..127.
    """
    n, columns = x.shape
    groups = -(-columns // group)
    padded = np.zeros((n, groups * group), np.float32)
    padded[:, :columns] = x
    padded = padded.reshape(n, groups, group)
    largest = np.abs(padded).max(axis=2)
    finite = np.asarray(np.isfinite(padded).all(axis=2))
    one = np.float32(1)
    if static_scale is not None:
        scales = np.full((n, groups), np.float32(static_scale))
        inverse = np.full((n, groups), one / np.float32(static_scale))
    else:
        alive = finite & (largest >= SMALLEST)
        safe = np.where(alive, largest, one).astype(np.float32)
        scales = np.where(alive, safe / np.float32(127), np.float32(0)).astype(np.float32)
        inverse = np.where(alive, np.float32(127) / safe, np.float32(0)).astype(np.float32)
    scales = np.where(finite, scales, np.float32("nan")).astype(np.float32)
    clean = np.where(finite[:, :, None], padded, np.float32(0))
    scaled = np.clip(clean * inverse[:, :, None], np.float32(-127), np.float32(127))
    return np.rint(scaled).astype(np.int8), scales


def matmul_twin(
    x: Array, matrix: Matrix, activations: str = "f32", static_scale: float | None = None
) -> Array:
    """The definition of `matmul`, in numpy."""
    if activations == "f32":
        weights = unpack(matrix)
        return np.stack([weights @ row for row in x]) if len(x) else np.zeros((0, matrix.rows), np.float32)
    group = matrix.group or INT8_COLUMNS
    integers, scales = quantize_activations(x, group, static_scale)
    weights, weight_scales = unpack_integers(matrix)
    n, groups = scales.shape
    padded = np.zeros((matrix.rows, groups * group), np.float32)
    padded[:, : matrix.columns] = weights
    padded = padded.reshape(matrix.rows, groups, group)
    out = np.zeros((n, matrix.rows), np.float32)
    for g in range(groups):
        products = integers[:, g].astype(np.float32) @ padded[:, g].T  # below 2^24: exact
        if matrix.group is not None:
            out += products * (scales[:, g, None] * weight_scales[None, :, g])
        else:
            out += products * scales[:, g, None]
    return out if matrix.group is not None else out * weight_scales


def matmul(
    x: Array,
    matrix: Matrix,
    *,
    activations: str = "f32",
    static_scale: float | None = None,
    out: Array | None = None,
    add: Array | None = None,
    bias: Array | None = None,
) -> Array:
    """x f32[n, columns] times `matrix` -> f32[n, rows]; into `out`, plus `add` [n, rows] and then plus `bias`
    [rows] where given.

    `add` may be `out` itself; `x` may not. UserError for a shape, type or activation type that does not fit.
    """
    module = native()
    if module is not None:
        try:
            to = np.empty((len(x), matrix.rows), np.float32) if out is None else out
            code = _CODES[activations]
            if (code == 2) == (static_scale is not None) and module.matmul(
                x, matrix._handle or _handle(module, matrix), to, add, code, static_scale or 0.0, bias
            ):
                return to
        except (TypeError, KeyError):  # not what the kernel takes: made so below, or refused
            pass
    return matmul_many(
        x,
        [matrix],
        activations=activations,
        static_scale=static_scale,
        out=None if out is None else [out],
        add=None if add is None else [add],
        bias=None if bias is None else [bias],
    )[0]


def matmul_many(
    x: Array,
    matrices: Sequence[Matrix],
    *,
    activations: str = "f32",
    static_scale: float | None = None,
    out: Sequence[Array] | None = None,
    add: Sequence[Array | None] | None = None,
    bias: Sequence[Array | None] | None = None,
) -> list[Array]:
    """Several matrices that share their inputs: inputs are quantized once, threads are woken once.

    Each result is bit for bit what `matmul` gives.
    """
    module = native()
    if module is not None and len(matrices) <= module.MOST_PRODUCTS:
        try:
            n = len(x)
            to = [np.empty((n, m.rows), np.float32) for m in matrices] if out is None else list(out)
            code = _CODES[activations]
            handles = [m._handle or _handle(module, m) for m in matrices]
            adds = None if add is None else list(add)
            biases = None if bias is None else list(bias)
            if (code == 2) == (static_scale is not None) and module.matmul_many(
                x, handles, to, adds, code, static_scale or 0.0, biases
            ):
                return to
        except (TypeError, KeyError):  # as in matmul
            pass
    _check(x, matrices, activations, static_scale, out, add)
    _check_bias(matrices, bias)
    if out is None:
        out = [np.empty((len(x), matrix.rows), np.float32) for matrix in matrices]
    if module is None:
        for i, matrix in enumerate(matrices):
            result = matmul_twin(x, matrix, activations, static_scale)
            for addend in (None if add is None else add[i], None if bias is None else bias[i]):
                result = result if addend is None else result + addend
            out[i][...] = result
        return list(out)
    x = np.ascontiguousarray(x)
    for begin in range(0, len(matrices), module.MOST_PRODUCTS):
        part = slice(begin, begin + module.MOST_PRODUCTS)
        targets = [
            array if array.flags.c_contiguous else np.empty(array.shape, np.float32) for array in out[part]
        ]
        fitted = module.matmul_many(
            x,
            [matrix._handle or _handle(module, matrix) for matrix in matrices[part]],
            targets,
            None if add is None else [a if a is None else np.ascontiguousarray(a) for a in add[part]],
            _CODES[activations],
            static_scale or 0.0,
            None if bias is None else [b if b is None else np.ascontiguousarray(b) for b in bias[part]],
        )
        assert fitted, "checked above"
        for array, target in zip(out[part], targets, strict=True):
            if array is not target:
                array[...] = target
    return list(out)


def matrix_handle(matrix: Matrix) -> Any:
    """The matrix as a native program takes it. Needs the native module."""
    module = native()
    assert module is not None
    return matrix._handle or _handle(module, matrix)


def _handle(module: ModuleType, matrix: Matrix) -> Any:
    """The matrix as native kernels take it, made once."""
    group = matrix.group or (INT8_COLUMNS if matrix.kind == "int8" else 0)
    code = GROUPED_INT8 if matrix.kind == "int8" and matrix.group else KINDS.index(matrix.kind)
    handle = module.matrix(matrix.data, code, matrix.rows, matrix.columns, group, matrix.interleaved)
    object.__setattr__(matrix, "_handle", handle)
    return handle


def _check(
    x: Array,
    matrices: Sequence[Matrix],
    activations: str,
    static_scale: float | None,
    out: Sequence[Any] | None,
    add: Sequence[Any] | None,
) -> None:
    if activations not in ACTIVATIONS:
        raise not_allowed("activations", activations, ACTIVATIONS)
    if (activations == "int8-static") != (static_scale is not None):
        raise UserError(
            "matmul: int8-static needs static_scale, the others take none",
            field="static_scale",
            given=static_scale,
        )
    if static_scale is not None and not 1e-30 <= static_scale < 1e30:
        raise UserError(
            f"matmul: static_scale={static_scale} must be positive and finite",
            field="static_scale",
            given=static_scale,
        )
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 2:
        raise UserError(f"matmul: x must be f32[n, columns], got {_described(x)}", field="x")
    for matrix in matrices:
        if x.shape[1] != matrix.columns:
            raise UserError(
                f"matmul: x has {x.shape[1]} columns, the matrix {matrix.columns}",
                field="x",
                given=x.shape[1],
            )
        if activations != "f32" and matrix.kind in FLOAT_BYTES:
            raise UserError(
                f"matmul: a {matrix.kind} matrix takes f32 activations, not {activations}",
                field="activations",
                given=activations,
            )
    for name, arrays in (("out", out), ("add", add)):
        if arrays is None:
            continue
        if len(arrays) != len(matrices):
            raise UserError(f"matmul: {len(matrices)} matrices but {len(arrays)} in {name}", field=name)
        for array, matrix in zip(arrays, matrices, strict=True):
            if array is None and name == "add":
                continue
            expected = (x.shape[0], matrix.rows)
            if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != expected:
                raise UserError(
                    f"matmul: {name} must be f32 of shape {expected}, got {_described(array)}", field=name
                )


def _check_bias(matrices: Sequence[Matrix], bias: Sequence[Any] | None) -> None:
    if bias is None:
        return
    if len(bias) != len(matrices):
        raise UserError(f"matmul: {len(matrices)} matrices but {len(bias)} in bias", field="bias")
    for array, matrix in zip(bias, matrices, strict=True):
        if array is not None and (
            not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != (matrix.rows,)
        ):
            raise UserError(
                f"matmul: bias must be f32 of shape ({matrix.rows},), got {_described(array)}", field="bias"
            )


def _described(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
