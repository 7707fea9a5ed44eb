"""An ONNX graph under construction: nodes by short calls, constants, weights streamed to a file beside it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import MissingExtraError
from haversack.kernels import Matrix
from haversack.kernels._matrix import unpack_integers
from haversack.models._architecture import Linear, Norm
from haversack.run._forms import chain, forms_of
from haversack.run._source import Model
from haversack.run._weights import FLOAT_KINDS
from haversack.run.export._tensors import DTYPES, as_kind, matrices, numbers, vector

OPSET, IR_VERSION = 18, 9
DATA_NAME = "model.onnx.data"
ACCURACY = {"f32": 1, "int8-dynamic": 4}
"""Type of activations -> the number by which ONNX Runtime's MatMulNBits is told."""
_ALIGNMENT = 4096  # so that a runtime can map what it reads
_LARGE = 1 << 16
Array = npt.NDArray[Any]


def load_onnx() -> Any:
    """The onnx package. Raises MissingExtraError."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("exporting to ONNX", "onnx", "onnx") from error
    return onnx


class Graph:
    """Nodes and initializers; every method that adds a node returns the name of its result.

    `model` gives the weights, which go to `data` as they are first used. `weights`: see onnx.py.
    """

    def __init__(self, model: Model, data: IO[bytes], weights: str) -> None:
        self.onnx = load_onnx()
        self.model, self.source, self.weights = model, model.source, weights
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.contrib = False
        self._data = data
        self._constants: dict[tuple[Any, ...], str] = {}
        self._stored: dict[str, Any] = {}
        self.points: dict[tuple[str, str], str] = {}

    def mark(self, module: str, side: str, name: str) -> str:
        """Remember `name` as what goes in or out of `module`, as act_ranges.json names it."""
        self.points[module, side] = name
        return name

    def add(self, kind: str, *inputs: str, out: str | None = None, domain: str = "", **fields: Any) -> str:
        """A node with one result."""
        name = out or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(
            self.onnx.helper.make_node(
                kind, list(inputs), [name], name=f"n{len(self.nodes)}", domain=domain, **fields
            )
        )
        return name

    def several(self, kind: str, *inputs: str, count: int, **fields: Any) -> list[str]:
        """A node with `count` results."""
        names = [f"{kind.lower()}_{len(self.nodes)}_{place}" for place in range(count)]
        node = self.onnx.helper.make_node(kind, list(inputs), names, name=f"n{len(self.nodes)}", **fields)
        self.nodes.append(node)
        return names

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """A small constant inside the graph; equal ones are one."""
        array = np.asarray(values, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self.initializers.append(self.onnx.numpy_helper.from_array(array, name))
            self._constants[key] = name
        return self._constants[key]

    def whole(self, *values: int) -> str:
        """A list of whole numbers."""
        return self.constant(values, np.int64)

    def reshape(self, x: str, *shape: int | str) -> str:
        """`x` with another shape: whole numbers, or names of results that hold lists of them."""
        parts = [one if isinstance(one, str) else self.whole(one) for one in shape]
        goal = parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=0)
        return self.add("Reshape", x, goal)

    def slice(self, x: str, start: int, stop: int, axis: int = -1, step: int = 1) -> str:
        """Entries `start` to `stop` along `axis`."""
        return self.add("Slice", x, self.whole(start), self.whole(stop), self.whole(axis), self.whole(step))

    def store(self, name: str, dtype: str, shape: tuple[int, ...], pieces: Iterable[Array]) -> str:
        """A weight in the data file: `dtype` FLOAT, FLOAT16, BFLOAT16 or UINT8."""
        helper = self.onnx.TensorProto
        large = math.prod(shape) >= _LARGE
        at = -(-self._data.tell() // (_ALIGNMENT if large else 64)) * (_ALIGNMENT if large else 64)
        self._data.seek(at)
        for piece in pieces:
            self._data.write(np.ascontiguousarray(piece).data)
        proto = helper(name=name, data_type=getattr(helper, dtype), data_location=helper.EXTERNAL)
        proto.dims.extend(shape)
        length = self._data.tell() - at
        for key, value in (("location", DATA_NAME), ("offset", at), ("length", length)):
            proto.external_data.add(key=key, value=str(value))
        self.initializers.append(proto)
        return name

    def vector(self, name: str, offset: float = 0.0) -> str:
        """A norm's weight (plus `offset`) or a bias, f32 [n]."""
        key = f"{name}+{offset}" if offset else name
        if key not in self._stored:
            values = vector(self.source, name) + np.float32(offset)
            self._stored[key] = self.store(key, "FLOAT", values.shape, [values])
        return str(self._stored[key])

    def linear(self, x: str, layer: Linear) -> str:
        """x [n, inputs] times the matrix, plus its bias: [n, outputs]; a matrix in parts as a chain of them.

        Raises UserError for a form that is no chain of matrices.
        """
        entry = forms_of(self.source).get(layer.weight)
        if entry is not None:
            for part in chain(entry, layer):
                x = self.linear(x, part)
            return self.mark(layer.weight.removesuffix(".weight"), "output", x)
        bias = None if layer.bias is None else self.vector(layer.bias)
        if not self._packed(layer.weight):
            inputs = [x, self._float(layer.weight), *([] if bias is None else [bias])]
            return self.add("Gemm", *inputs, transB=1)
        weight, scales, bits, block, columns = self._integers(layer.weight)
        self.contrib = True
        fields: dict[str, Any] = {
            "K": columns,
            "N": layer.outputs,
            "bits": bits,
            "block_size": block,
            "accuracy_level": ACCURACY[self.model.activations],
        }
        out = self.add("MatMulNBits", x, weight, scales, domain="com.microsoft", **fields)
        return out if bias is None else self.add("Add", out, bias)

    def rows(self, name: str, numbers: str) -> str:
        """Rows `numbers` [n] of a matrix as f32 [n, columns]; only these rows are unpacked."""
        if not self._packed(name):
            found = self.add("Gather", self._raw_float(name), numbers, axis=0)
            return found if self._kind(name) == "f32" else self.add("Cast", found, to=1)
        weight, scales, bits, _, columns = self._integers(name)
        stored = self.add("Gather", weight, numbers, axis=0)  # [n, blocks, bytes]
        if bits == 4:
            low = self.add("BitwiseAnd", stored, self.constant(15, np.uint8))
            high = self.add("BitShift", stored, self.constant(4, np.uint8), direction="RIGHT")
            pair = [self.add("Unsqueeze", one, self.whole(-1)) for one in (low, high)]
            stored = self.reshape(self.add("Concat", *pair, axis=-1), 0, 0, -1)
        centred = self.add("Sub", self.add("Cast", stored, to=1), self.constant(float(1 << (bits - 1))))
        scale = self.add("Unsqueeze", self.add("Gather", scales, numbers, axis=0), self.whole(-1))
        values = self.reshape(self.add("Mul", centred, scale), 0, -1)
        return self.slice(values, 0, columns)

    def norm(self, x: str, norm: Norm) -> str:
        """The last axis of x normalized."""
        module = norm.weight.removesuffix(".weight")
        self.mark(module, "input", x)
        return self.mark(module, "output", self._norm(x, norm))

    def _norm(self, x: str, norm: Norm) -> str:
        weight = self.vector(norm.weight, norm.offset)
        if norm.kind == "layer":
            bias = [] if norm.bias is None else [self.vector(norm.bias)]
            return self.add("LayerNormalization", x, weight, *bias, axis=-1, epsilon=norm.eps)
        square = self.add("Mul", x, x)
        mean = self.add("ReduceMean", square, self.whole(-1), keepdims=1)
        size = self.add("Sqrt", self.add("Add", mean, self.constant(norm.eps)))
        return self.add("Mul", self.add("Div", x, size), weight)

    def model_proto(self, inputs: list[Any], outputs: list[Any]) -> Any:
        """The whole model."""
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, "haversack", inputs, outputs, self.initializers)
        domains = [helper.make_opsetid("", OPSET)]
        if self.contrib:
            domains.append(helper.make_opsetid("com.microsoft", 1))
        return helper.make_model(
            graph, opset_imports=domains, ir_version=IR_VERSION, producer_name="haversack"
        )

    def _packed(self, name: str) -> bool:
        return self.weights == "stored" and self.source.tensors[name].kind not in FLOAT_KINDS

    def _kind(self, name: str) -> str:
        return self.source.tensors[name].kind if self.weights == "stored" else self.weights

    def _raw_float(self, name: str) -> str:
        """A float matrix as it is stored in the file."""
        if name not in self._stored:
            kind = self._kind(name)
            pieces = (as_kind(name, part, kind).view(DTYPES[kind]) for part in numbers(self.source, name))
            dtype = {"f32": "FLOAT", "f16": "FLOAT16", "bf16": "BFLOAT16"}[kind]
            self._stored[name] = self.store(name, dtype, self.source.tensors[name].shape, pieces)
        return str(self._stored[name])

    def _float(self, name: str) -> str:
        """A float matrix as f32; runtimes fold the cast when they load."""
        stored = self._raw_float(name)
        if self._kind(name) == "f32":
            return stored
        if f"{name}:f32" not in self._stored:
            self._stored[f"{name}:f32"] = self.add("Cast", stored, to=1)
        return str(self._stored[f"{name}:f32"])

    def _integers(self, name: str) -> tuple[str, str, int, int, int]:
        """Names of a packed matrix's integers and scales as MatMulNBits takes them; bits, block, columns."""
        if name not in self._stored:
            entry = self.source.tensors[name]
            rows, columns = entry.shape
            bits = 8 if entry.kind == "int8" else 4  # int3 as 4 bits: its integers fit
            block = block_of(entry.group, columns)
            scales: list[Array] = []

            def pieces() -> Iterator[Array]:
                for part in matrices(self.source, name):
                    integers, factors = to_blocks(part, bits, block)
                    scales.append(factors)
                    yield integers

            shape = (rows, -(-columns // block), block * bits // 8)
            weight = self.store(name, "UINT8", shape, pieces())
            factors = self.store(f"{name}:scales", "FLOAT", shape[:2], scales)
            self._stored[name] = (weight, factors, bits, block, columns)
        found: tuple[str, str, int, int, int] = self._stored[name]
        return found


def block_of(group: int | None, columns: int) -> int:
    """The largest power of two, 16 to 128, that divides the columns under one scale (None: a whole row)."""
    if group is None:
        return next((size for size in (128, 64, 32) if columns % size == 0), 32)
    return next(size for size in (128, 64, 32, 16) if group % size == 0)


def to_blocks(matrix: Matrix, bits: int, block: int) -> tuple[Array, Array]:
    """Rows of a packed matrix in MatMulNBits' order: unsigned integers u8 [rows, blocks, block * bits / 8]
    around 2^(bits - 1), of two in a byte the first in the low half; scales f32 [rows, blocks].

    Every number keeps its integer and its scale, so nothing is rounded.
    """
    integers, scales = unpack_integers(matrix)
    rows, columns = integers.shape
    blocks = -(-columns // block)
    zero = 1 << (bits - 1)
    spread = np.full((rows, blocks * block), zero, np.uint8)
    spread[:, :columns] = (integers.astype(np.int16) + zero).astype(np.uint8)
    if bits == 4:
        spread = spread[:, 0::2] | (spread[:, 1::2] << 4)
    if matrix.group is None:
        factors = np.repeat(scales[:, None], blocks, axis=1)
    else:
        factors = np.repeat(scales, matrix.group // block, axis=1)[:, :blocks]
    return spread.reshape(rows, blocks, -1), np.ascontiguousarray(factors, np.float32)


def write_model(path: Path, proto: Any) -> None:
    """Write the graph's own file, flushed."""
    with path.open("wb") as file:
        file.write(proto.SerializeToString())
        file.flush()
        os.fsync(file.fileno())
