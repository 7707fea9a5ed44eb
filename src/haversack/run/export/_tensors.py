"""A model's tensors as exports read them: some rows at a time, as numbers or as integers with scales."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.core.memory import MemoryPlan
from haversack.core.pack import Pack, TensorSource
from haversack.kernels import Matrix, unpack
from haversack.kernels._matrix import to_bf16
from haversack.models._rearranged import ordered
from haversack.run._forms import forms_of
from haversack.run._source import Model
from haversack.run._weights import bind, matrix_of, row_span, tensor

F32 = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
PIECE_NBYTES = 8 << 20
PROCESS_MIB = 50
DTYPES = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}
NBYTES = {"f32": 4, "f16": 2, "bf16": 2}


def matrices(source: TensorSource, name: str) -> Iterator[Matrix]:
    """The matrix `name` in order, some rows at a time: about 8 MiB in f32."""
    entry = ordered(source.tensors[name])
    rows, columns = entry.shape
    at_once = max(16, PIECE_NBYTES // 4 // columns // 16 * 16)
    data = source.bytes(name)
    for start in range(0, rows, at_once):
        stop = min(start + at_once, rows)
        offset, nbytes = row_span(entry, start, stop)
        part = data[offset : offset + nbytes]
        yield matrix_of(entry, stop - start, columns, part)


def vector(source: TensorSource, name: str) -> F32:
    """A norm or bias as f32 [n]."""
    values: F32 = tensor(source.tensors[name], source.bytes(name))
    return values


def numbers(source: TensorSource, name: str) -> Iterator[F32]:
    """The values that the tensor `name` stands for, f32, in order: rows of a matrix, a whole vector, or all
    of a matrix that has a form.
    """
    if name in forms_of(source):
        yield bind(source, [name])[name].dense()
        return
    if len(source.tensors[name].shape) != 2:
        yield vector(source, name)
        return
    for part in matrices(source, name):
        values: F32 = unpack(part)
        yield values


def as_kind(name: str, values: F32, kind: str) -> Array:
    """`values` as `kind`, rounded to nearest even. Raises UserError for one that f16 cannot hold."""
    if kind == "f32":
        return np.ascontiguousarray(values, "<f4")
    if kind == "bf16":
        return to_bf16(values)
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if not np.isfinite(halves).all() and np.isfinite(values).all():
        raise UserError(
            f"{name} holds {np.abs(values).max():g}, which f16 cannot (its largest is 65504); "
            "use --weights f32.",
            field="weights",
            given="f16",
            nearest="f32",
        )
    return halves


def common_kind(source: TensorSource, names: Iterator[str] | list[str]) -> str:
    """The float type that holds every tensor as it is: their own where they share one, else f32, which a
    matrix of several parts always is.
    """
    names = list(names)
    if any(name in forms_of(source) for name in names):
        return "f32"
    kinds = {source.tensors[name].kind for name in names}
    return kinds.pop() if len(kinds) == 1 and kinds <= set(NBYTES) else "f32"


def export_plan(model: Model) -> MemoryPlan:
    """What an export holds: weights mapped while they are read, and the rows that are converted."""
    mapped = sum(path.stat().st_size for path in model.source.files)
    merged = max((math.prod(entry["shape"]) for entry in forms_of(model.source).values()), default=0)
    return MemoryPlan(
        (
            ("program", PROCESS_MIB << 20),
            ("weights, mapped while they are read", mapped),
            ("rows being converted", 3 * PIECE_NBYTES),
            *((("a matrix and its parts in f32", 12 * merged),) if merged else ()),
        )
    )


def hub_config(model: Model) -> dict[str, Any]:
    """The config.json that the model came with."""
    source = model.source
    found = source.record.architecture if isinstance(source, Pack) else getattr(source, "config", None)
    if not found:
        raise UserError(f"{model.path} came without a config.json, which the export needs.", field="model")
    return dict(found)
