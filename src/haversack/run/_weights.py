"""A checkpoint's tensors as the kernels take them: matrices over mapped bytes, vectors as f32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError, UserError, nearest_name
from haversack.core.pack import TensorEntry, TensorSource
from haversack.kernels import Matrix
from haversack.kernels._matrix import SMALL, split_fours, split_threes
from haversack.kernels._narrow import widen_int2
from haversack.models._architecture import Architecture, Linear
from haversack.models._checkpoint import Checkpoint, Turned, upright
from haversack.models._rearranged import Rearranged, put_in_order
from haversack.run._forms import assemble, check_forms, forms_of, stored_names

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Weights = Mapping[str, Any]
"""Tensor name -> `kernels.Matrix` (or a form, see _forms.py) for what multiplies, f32 array for norms and
biases.
"""
Bytes = Callable[[TensorEntry], Any]

FLOAT_KINDS = ("f32", "f16", "bf16")
MATRIX_KINDS = ("f32", "f16", "bf16", "int8", "int4", "int3", "int2")
WHOLE_NUMBERS = {"i32": "<i4", "u8": "u1"}


class Steady(dict[str, Any]):
    """A block's weights that stay where they are as long as this lives; holds what was made for them."""

    __slots__ = ("programs",)

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.programs: dict[Any, Any] = {}


def check_tensors(source: TensorSource, architecture: Architecture) -> None:
    """Compare what a checkpoint holds with what its architecture needs.

    Raises DamagedFileError for a tensor that is missing, UserError for one of another shape, of a kind no
    kernel takes, or for a bias that the config denies; each names the tensor as the checkpoint does.
    """
    view = source if isinstance(source, Checkpoint) else None
    needed = architecture.tensors() if view is None else view.held
    held = source.tensors if view is None else view.source.tensors
    alone = view is None or not architecture.parts
    forms = forms_of(source)
    check_forms(source, {one.weight: (one.outputs, one.inputs) for one in inner_matrices(architecture)})
    for name, shape in needed.items():
        if name in forms:
            continue
        entry = held.get(name)
        if entry is None:
            nearest = nearest_name(name, held)
            hint = f" (the nearest it holds is {nearest})" if nearest else ""
            raise DamagedFileError(source.path, f"the tensor {name} is missing{hint}", field=name)
        if entry.shape != shape:
            raise UserError(
                f"{source.path}: the tensor {name} has the shape {list(entry.shape)} where the config needs "
                f"{list(shape)}.",
                field=name,
                given=list(entry.shape),
                nearest=list(shape),
            )
        allowed = MATRIX_KINDS if len(shape) == 2 and alone else FLOAT_KINDS
        if entry.kind not in allowed:
            raise UserError(
                f"{source.path}: the tensor {name} is stored as {entry.kind} (allowed {', '.join(allowed)}).",
                field=name,
                given=entry.kind,
                nearest="f16",
            )
    for name, shape in needed.items():
        bias = name.removesuffix("weight") + "bias"
        if len(shape) == 2 and bias != name and bias in held and bias not in needed:
            raise UserError(
                f"{source.path}: there is a tensor {bias}, but config.json says that there is no such bias.",
                field=bias,
            )


def refuse_second_head(source: TensorSource, architecture: Architecture) -> None:
    """Raises UserError for an encoder with a decoder that has an output matrix beside the embedding which
    its config says is both: some configs of T5's kin say so of checkpoints where it is not.
    """
    name = "lm_head.weight"
    if architecture.reader is None or not architecture.tied or name not in source.tensors:
        return
    if source.bytes(name) != source.bytes(architecture.embedding):
        raise UserError(
            f"{source.path}: there is a tensor {name} that is not the embedding, but config.json says that "
            "the output matrix is the embedding; set tie_word_embeddings (and scale_decoder_outputs where it "
            "is there) to false.",
            field="tie_word_embeddings",
            given=True,
            nearest=False,
        )


def require_static(source: TensorSource, architecture: Architecture) -> None:
    """Raises UserError naming the first matrix of a block whose inputs have no static grid."""
    forms = forms_of(source)
    for block in architecture.blocks:
        for linear in block.matrices():
            form = str(forms[linear.weight]["form"]) if linear.weight in forms else "no form"
            if form not in ("static-input", "shadow"):
                raise UserError(
                    f"{source.path}: int8-static needs a range for the inputs of every matrix, and "
                    f"{linear.weight} has none; pack the model with --precision mobilequant or mllm-npu, or "
                    "run it with --activations int8-dynamic.",
                    field="activations",
                    given="int8-static",
                    nearest="int8-dynamic",
                )


def inner_matrices(architecture: Any) -> list[Linear]:
    """The matrices that may have a form: those of blocks, and an encoder's pooler and dense layer."""
    found: list[Linear] = [linear for block in architecture.blocks for linear in block.matrices()]
    ends = (getattr(architecture, "pooler", None), getattr(architecture.head, "dense", None))
    return found + [linear for linear in ends if linear is not None]


def tensor(entry: TensorEntry, data: Any) -> Any:
    """The tensor `entry` over its bytes `data`: a Matrix (no copy, but of int2, which becomes int4) or an f32
    vector (a copy); parts of forms in i32 and u8 are arrays (no copy).
    """
    if entry.kind in WHOLE_NUMBERS:
        return np.frombuffer(data, WHOLE_NUMBERS[entry.kind]).reshape(entry.shape)
    if len(entry.shape) == 2:
        rows, columns = entry.shape
        return matrix_of(entry, rows, columns, data)
    return _vector(entry.kind, data)


def matrix_of(entry: TensorEntry, rows: int, columns: int, data: Any) -> Matrix:
    """`rows` of the matrix `entry` over their bytes `data`; int2 becomes int4 (a copy)."""
    if entry.kind == "int2":
        return widen_int2(data, rows, columns, entry.group or 0)
    return Matrix.from_bytes(entry.kind, (rows, columns), entry.group, entry.layout, data)


def _vector(kind: str, data: Any) -> F32:
    if kind == "bf16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, "<f4" if kind == "f32" else "<f2").astype(np.float32)


def bind(source: TensorSource, names: Iterable[str], data: Bytes | None = None) -> dict[str, Any]:
    """The tensors `names` of `source` as `Weights`; `data` gives a tensor's bytes (default: mapped)."""
    read = data or (lambda entry: source.bytes(entry.name))
    stored = stored_names(source, names)
    found = {name: tensor(source.tensors[name], read(source.tensors[name])) for name in stored}
    return assemble(forms_of(source), found)


def nbytes(source: TensorSource, names: Iterable[str]) -> int:
    """Bytes of the tensors `names` as they are held: int2 beside the int4 that is made of it."""
    entries = (source.tensors[name] for name in stored_names(source, names))
    return sum(entry.nbytes * (3 if entry.kind == "int2" else 1) for entry in entries)


def kinds_of(source: TensorSource, names: Iterable[str]) -> list[str]:
    """The kinds that the matrices `names` are stored in, each once, with the form of those that have one."""
    forms = forms_of(source)
    stored = {source.tensors[name].kind for name in stored_names(source, names)}
    return sorted(stored) + sorted({str(forms[name]["form"]) for name in names if name in forms})


def embedding_rows(table: Matrix, tokens: I32) -> F32:
    """Rows `tokens` [n] of `table` as f32 [n, columns]; only these rows are read and unpacked."""
    rows, columns, data = table.rows, table.columns, table.data
    found: F32
    if table.kind == "bf16":
        halves = data.view("<u2").reshape(rows, columns)[tokens]
        found = (halves.astype(np.uint32) << 16).view(np.float32)
        return found
    if table.kind in FLOAT_KINDS:
        kind = "<f4" if table.kind == "f32" else "<f2"
        found = data.view(kind).reshape(rows, columns)[tokens].astype(np.float32)
        return found
    blocks, lanes = tokens // 16, tokens % 16
    if table.kind == "int8" and table.group is not None:
        parts = data.reshape(-(-rows // 16), -1, table.group * 16 + 32)
        quads = parts[:, :, :-32].reshape(*parts.shape[:2], -1, 16, 4)[blocks, :, :, lanes]
        halves = parts[:, :, -32:].view("<f2")[blocks, :, lanes].astype(np.float32)
        raised = quads.reshape(len(tokens), parts.shape[1], table.group).astype(np.float32)
        found = (raised - np.float32(128)) * halves[:, :, None]
        return np.ascontiguousarray(found.reshape(len(tokens), -1)[:, :columns])
    if table.kind == "int8":
        # Units of 64 bytes, 4 of each of 16 rows: the last unit holds the scales.
        units = data.reshape(-(-rows // 16), -1, 16, 4)[blocks, :, lanes]
        scales = np.ascontiguousarray(units[:, -1]).view("<f4")
        values = units[:, :-1].reshape(len(tokens), -1)[:, :columns].astype(np.float32)
        found = (values - np.float32(128)) * scales
        return found
    bits, group = SMALL[table.kind], table.group or 0
    groups = -(-columns // group)
    cells = data.reshape(-(-rows // 16), groups, group * 2 * bits + 32)
    joined = cells[:, :, :-32].reshape(-1, groups, group * bits // 32, 16, 4)[blocks, :, :, lanes]
    scales = cells[:, :, -32:].view("<f2")[blocks, :, lanes].astype(np.float32)
    quads = split_fours(joined) if table.kind == "int4" else split_threes(joined)
    codes = quads.reshape(len(tokens), groups, group).astype(np.float32) - np.float32(1 << (bits - 1))
    return np.ascontiguousarray((codes * scales[:, :, None]).reshape(len(tokens), -1)[:, :columns])


def row_span(entry: TensorEntry, start: int, stop: int) -> tuple[int, int]:
    """(offset inside the tensor, bytes) of rows `start`..`stop` of a matrix; packed kinds go by 16 rows, so
    `start` must be a multiple of 16 there, and `stop` too unless it is the end."""
    rows = entry.shape[0]
    unit = 16 if entry.layout == "rows16-1" else 1
    if start % unit or (stop % unit and stop != rows):
        raise ValueError(f"rows {start}..{stop} of {entry.name} cut a block of {unit}")
    if isinstance(entry, Rearranged):
        row = entry.stored // rows
        return start * row, (stop - start) * row
    per_unit = entry.nbytes // math.ceil(rows / unit)
    first, last = start // unit, math.ceil(stop / unit)
    return first * per_unit, (last - first) * per_unit


def rows_matrix(entry: TensorEntry, start: int, stop: int, data: Any) -> Matrix:
    """Rows `start`..`stop` of the matrix `entry`, whose bytes (see `row_span`) are `data`; a turned one is
    whole, and `data` its extent, of which it is a copy, as is one that is put in order."""
    if isinstance(entry, Turned):
        data = upright(entry, data)
    if isinstance(entry, Rearranged):
        data = put_in_order(entry, data)
    return matrix_of(entry, stop - start, entry.shape[1], data)
