"""ONNX models (`.onnx`): nodes, constants, inputs and outputs of one graph, read with bounds.

Source: ONNX's own protocol buffers, parsed by its package (extra `onnx`); nothing of it leaves this file.
Weights that lie in other files are refused, so that a path in a model opens nothing; so are sparse constants,
functions of the model's own and operators of other domains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError, MissingExtraError, UserError

LARGEST = 256 * 2**20
MOST = 20_000  # nodes, constants
DOMAINS = ("", "ai.onnx")
KINDS = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
"""Types of elements that are kept, by their number."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class OnnxNode:
    """`inputs` has "" for one that is left out; `attributes` holds numbers, texts and arrays."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def given(self, place: int) -> str | None:
        """The name of an input; None for one that is left out."""
        return self.inputs[place] or None if place < len(self.inputs) else None


@dataclass(frozen=True)
class OnnxModel:
    """`inputs`: name -> sizes, a name or None in place of one that is not fixed. `opset`: of the standard
    operators."""

    inputs: Mapping[str, tuple[int | str | None, ...]]
    outputs: tuple[str, ...]
    nodes: tuple[OnnxNode, ...]
    constants: Mapping[str, Array]
    opset: int


def read_onnx(path: str | Path) -> OnnxModel:
    """The model in a file. Raises DamagedFileError for what is none, UserError for what is not read."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingExtraError("reading ONNX", error.name or "onnx", "onnx") from error
    place = Path(path)
    if place.stat().st_size > LARGEST:
        raise UserError(f"{place} has more than {LARGEST >> 20} MiB.", field="model", given=str(place))
    model = onnx.ModelProto()
    try:
        model.ParseFromString(place.read_bytes())
    except DecodeError as error:
        raise DamagedFileError(place, "it is no ONNX model", field="model") from error
    graph = model.graph
    if not graph.node or not graph.output or len(graph.node) + len(graph.initializer) > MOST:
        raise DamagedFileError(place, "its graph is empty or endless", field="model")
    if len(model.functions) or len(graph.sparse_initializer):
        raise UserError(
            f"{place} has functions or sparse constants of its own, which are not read; export it without.",
            field="model",
            given=str(place),
        )
    opsets = [each.version for each in model.opset_import if each.domain in DOMAINS]
    try:
        constants = {each.name: _values(place, each) for each in graph.initializer}
        nodes = tuple(_node(place, number, each) for number, each in enumerate(graph.node))
        inputs = {
            each.name: _sizes(each.type.tensor_type) for each in graph.input if each.name not in constants
        }
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise DamagedFileError(place, str(error)[:200] or "its parts do not fit", field="model") from error
    return OnnxModel(
        inputs, tuple(each.name for each in graph.output), nodes, constants, int(max(opsets, default=1))
    )


def _sizes(kind: Any) -> tuple[int | str | None, ...]:
    if kind.elem_type not in (0, *KINDS):
        raise ValueError(f"an input has elements of the type {kind.elem_type}")
    found: list[int | str | None] = []
    for each in kind.shape.dim:
        found.append(int(each.dim_value) if each.HasField("dim_value") else each.dim_param or None)
    return tuple(found)


def _values(place: Path, tensor: Any) -> Array:
    """A constant. Raises UserError where it lies elsewhere, ValueError where it is not whole."""
    from onnx import numpy_helper

    if tensor.data_location or tensor.external_data:
        raise UserError(
            f"the constant {tensor.name[:80]} of {place} lies in another file; save the model in one.",
            field="model",
            given=tensor.name[:80],
        )
    if tensor.data_type not in KINDS:
        raise ValueError(f"the constant {tensor.name[:80]} has the type {tensor.data_type}")
    count = math.prod(tensor.dims)
    size = np.dtype(KINDS[tensor.data_type]).itemsize
    if min(tensor.dims, default=0) < 0 or count * size > LARGEST:
        raise ValueError(f"the constant {tensor.name[:80]} has the sizes {list(tensor.dims)[:8]}")
    values = np.asarray(numpy_helper.to_array(tensor))
    if values.dtype in (np.float16, np.float64):
        values = values.astype(np.float32)
    return values


def _node(place: Path, number: int, node: Any) -> OnnxNode:
    name = node.name or (node.output[0] if node.output else f"number {number}")
    if node.domain not in DOMAINS:
        raise UserError(
            f"the node {name[:80]} of {place} is a {node.op_type} of {node.domain[:40]}; operators of ONNX "
            "itself are read.",
            field="model",
            given=f"{node.domain[:40]}.{node.op_type[:40]}",
        )
    kept = {each.name: _attribute(place, each) for each in node.attribute}
    return OnnxNode(node.op_type, name, tuple(node.input), tuple(node.output), kept)


def _attribute(place: Path, given: Any) -> Any:
    """A number, a text, a list of them or an array; None for a graph, which no operator that is read has."""
    import onnx

    if given.type == onnx.AttributeProto.TENSOR:
        return _values(place, given.t)
    if given.type == onnx.AttributeProto.STRING:
        return given.s.decode("utf-8", "replace")
    if given.type == onnx.AttributeProto.STRINGS:
        return [each.decode("utf-8", "replace") for each in given.strings]
    if given.type in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT):
        return given.f if given.type == onnx.AttributeProto.FLOAT else int(given.i)
    if given.type == onnx.AttributeProto.FLOATS:
        return list(given.floats)
    if given.type == onnx.AttributeProto.INTS:
        return [int(each) for each in given.ints]
    return None
