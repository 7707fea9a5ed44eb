"""LiteRT models (`.tflite`): the tensors and operations of one subgraph, read with bounds.

Source: the schema of LiteRT (formerly TensorFlow Lite), version 3, file identifier TFL3. Only what graphs of
small networks need is kept: shapes, types, scales and zero points, constant data, inputs, outputs, options of
the operations in BUILTINS. A file with another operation is read up to it and refused with its name or
number; so are several subgraphs, buffers in other files and sparse tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats._flatbuffer import Malformed, Table

LARGEST = 256 * 2**20
MOST = 20_000  # tensors, operations
IDENTIFIER = b"TFL3"
TYPES = {0: "<f4", 2: "<i4", 4: "<i8", 9: "i1"}
TYPE_NAMES = {0: "f32", 2: "int32", 4: "int64", 9: "int8"}
ACTIVATIONS = {0: "none", 1: "relu", 3: "relu6"}
_PADS = ("padding", "<b", 0)
_STRIDES = (("stride_w", "<i", 0), ("stride_h", "<i", 0))
_DILATIONS = (("dilation_w", "<i", 1), ("dilation_h", "<i", 1))
_FUSED = ("activation", "<b", 0)

Fields = tuple[tuple[str, str, float], ...]
BUILTINS: dict[int, tuple[str, Fields]] = {
    0: ("add", (_FUSED,)),
    1: ("average-pool", (_PADS, *_STRIDES, ("width", "<i", 0), ("height", "<i", 0), _FUSED)),
    3: ("conv", (_PADS, *_STRIDES, _FUSED, *_DILATIONS)),
    4: ("depthwise", (_PADS, *_STRIDES, ("multiplier", "<i", 0), _FUSED, *_DILATIONS)),
    9: ("fully-connected", (_FUSED, ("format", "<b", 0), ("keep", "<b", 0))),
    19: ("relu", ()),
    21: ("relu6", ()),
    22: ("reshape", ()),
    25: ("softmax", (("beta", "<f", 0.0),)),
    34: ("pad", ()),
    40: ("mean", (("keep", "<b", 0),)),
    74: ("sum", (("keep", "<b", 0),)),
}
"""Number of an operation -> our name, and its options in the order of the schema (name, form, default)."""


@dataclass(frozen=True)
class LitertTensor:
    """`dtype`: f32, int8, int32 or int64. `scales` and `zeros` are empty where there is no quantization;
    `axis` is their dimension. `data` is None for what operations write."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: tuple[float, ...]
    zeros: tuple[int, ...]
    axis: int
    data: npt.NDArray[Any] | None


@dataclass(frozen=True)
class LitertOp:
    """`kind` is a name of BUILTINS; `inputs` has -1 for one that is left out."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, float]

    def whole(self, name: str) -> int:
        """An option that is an integer."""
        return int(self.options[name])

    @property
    def activation(self) -> str:
        """none, relu or relu6."""
        return ACTIVATIONS[self.whole("activation")]


@dataclass(frozen=True)
class LitertModel:
    """One subgraph."""

    tensors: tuple[LitertTensor, ...]
    ops: tuple[LitertOp, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def is_litert_file(path: Path) -> bool:
    """Whether `path` is a file that says so at its beginning."""
    try:
        with path.open("rb") as stream:
            return stream.read(8)[4:] == IDENTIFIER
    except OSError:
        return False


def read_litert(path: Path) -> LitertModel:
    """The model in the file. Raises UserError when it cannot be read or needs what is not supported,
    DamagedFileError when it is no such model."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST >> 20} MiB.", field="model", given=str(path))
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}.", field="model", given=str(path)
        ) from error
    try:
        return model_of(data)
    except Malformed as error:
        raise DamagedFileError(path, f"it is no LiteRT model ({error})", field="model") from error
    except NotImplementedError as error:
        raise UserError(f"{path} has {error}.", field="model", given=str(error)) from error


def model_of(data: bytes) -> LitertModel:
    """The model of a file's bytes. Raises Malformed with the finding, NotImplementedError for a part that is
    not supported."""
    root = Table.root(data, IDENTIFIER)
    if root.number(0, "<I") != 3:
        raise Malformed(f"its version is {root.number(0, '<I')}, not 3")
    subgraphs = root.tables(2, MOST)
    if len(subgraphs) != 1:
        raise NotImplementedError(f"{len(subgraphs)} subgraphs, and one is supported")
    buffers = root.tables(4, MOST)
    codes = [_code(each) for each in root.tables(1, MOST)]
    (graph,) = subgraphs
    tensors = tuple(_tensor(each, buffers) for each in graph.tables(0, MOST))
    ops = tuple(_op(each, codes, len(tensors)) for each in graph.tables(3, MOST))
    inputs, outputs = (_indices(graph, field, len(tensors), 0) for field in (1, 2))
    return LitertModel(tensors, ops, inputs, outputs)


def _code(table: Table) -> int:
    return max(int(table.number(0, "<b")), int(table.number(3, "<i")))


def _tensor(table: Table, buffers: list[Table]) -> LitertTensor:
    name = table.text(3)
    shape = tuple(int(size) for size in table.numbers(0, "<i4"))
    if len(shape) > 8 or any(size < 0 for size in shape) or math.prod(shape) > 1 << 31:
        raise Malformed(f"the tensor {name[:80]} has the shape {shape[:8]}")
    kind = int(table.number(1, "<b"))
    if kind not in TYPES:
        raise NotImplementedError(
            f"a tensor of type {kind} ({name[:80]}), and {', '.join(TYPE_NAMES.values())} are supported"
        )
    if table.table(6) is not None:
        raise NotImplementedError(f"a sparse tensor ({name[:80]})")
    scales: tuple[float, ...] = ()
    zeros: tuple[int, ...] = ()
    axis = 0
    quantization = table.table(4)
    if quantization is not None:
        scales = tuple(float(each) for each in quantization.numbers(2, "<f4"))
        zeros = tuple(int(each) for each in quantization.numbers(3, "<i8"))
        axis = int(quantization.number(6, "<i"))
        if scales:
            _require_scales(name, shape, scales, zeros, axis)
    return LitertTensor(
        name, shape, TYPE_NAMES[kind], scales, zeros, axis, _data(table, kind, shape, buffers)
    )


def _require_scales(
    name: str, shape: tuple[int, ...], scales: tuple[float, ...], zeros: tuple[int, ...], axis: int
) -> None:
    if len(scales) != len(zeros) or not all(math.isfinite(each) and each > 0 for each in scales):
        raise Malformed(f"scales of {name[:80]} are not all above 0, or lack zero points")
    if len(scales) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(scales)):
        raise Malformed(f"{name[:80]} has {len(scales)} scales for the shape {shape}")
    if not all(-(1 << 31) <= zero < 1 << 31 for zero in zeros):
        raise Malformed(f"a zero point of {name[:80]} does not fit 32 bits")


def _data(table: Table, kind: int, shape: tuple[int, ...], buffers: list[Table]) -> npt.NDArray[Any] | None:
    number = int(table.number(2, "<I"))
    if number >= len(buffers):
        raise Malformed(f"a tensor names buffer {number} of {len(buffers)}")
    buffer = buffers[number]
    if buffer.number(1, "<Q") > 1:
        raise NotImplementedError("a buffer that lies outside the model")
    raw = buffer.numbers(0, "u1")
    if not len(raw):
        return None
    dtype = np.dtype(TYPES[kind])
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise Malformed(f"a tensor of shape {shape} has {len(raw)} bytes")
    return np.frombuffer(raw.tobytes(), dtype).reshape(shape)


def _op(table: Table, codes: list[int], tensors: int) -> LitertOp:
    number = int(table.number(0, "<I"))
    if number >= len(codes):
        raise Malformed(f"an operation names code {number} of {len(codes)}")
    if codes[number] not in BUILTINS:
        known = ", ".join(kind for kind, _ in BUILTINS.values())
        raise NotImplementedError(f"operation {codes[number]} of LiteRT, and these are supported: {known}")
    kind, fields = BUILTINS[codes[number]]
    inputs, outputs = _indices(table, 1, tensors, -1), _indices(table, 2, tensors, 0)
    if not inputs or len(outputs) != 1:
        raise Malformed(f"{kind} has {len(inputs)} inputs and {len(outputs)} outputs")
    options: dict[str, float] = {}
    found = table.table(4)
    for field, (name, form, default) in enumerate(fields):
        options[name] = default if found is None else found.number(field, form, default)
    if options.get("activation", 0) not in ACTIVATIONS:
        raise NotImplementedError(f"the activation {options['activation']} in {kind}")
    return LitertOp(kind, inputs, outputs, options)


def _indices(table: Table, field: int, tensors: int, lowest: int) -> tuple[int, ...]:
    found = tuple(int(each) for each in table.numbers(field, "<i4"))
    if not all(lowest <= each < tensors for each in found):
        raise Malformed("a tensor is named that is not there")
    return found
