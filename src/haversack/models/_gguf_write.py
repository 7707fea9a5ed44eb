"""A pack, folder or file of ours written as GGUF: `write_gguf`, which `run/export/gguf.py` calls.

What GGUF can hold goes over unchanged: f32, f16, bf16, int8 in groups of 32 (Q8_0), int4 (Q4_0; wider groups
repeat their scale). int8 with one scale a row becomes Q8_0 with that scale rounded to f16, or f16 where that
would cost more; rows that are no multiple of 32 become f16. Each change is told. The file is read back before
it takes its name: it must describe the same architecture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from haversack.core.errors import UserError
from haversack.core.pack import TensorEntry, TensorSource
from haversack.core.progress import Progress
from haversack.formats.gguf import TensorOut, write_gguf_file
from haversack.kernels import Matrix, to_blocks, unpack
from haversack.models._architecture import Architecture
from haversack.models._gguf_meta import architecture_entries, extra_tensors
from haversack.models._gguf_names import Place, places
from haversack.models._gguf_tokenizer_out import tokenizer_entries

PIECE = 8 << 20
ROUNDED = 2.0**-11
"""The most that rounding to f16 changes a number of normal size, as a share of it."""
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}
WINDOWED = ("gemma2", "gemma3_text", "phi3")
"""Families whose windows GGUF knows."""


@dataclass(frozen=True)
class Exported:
    """What was written: the `path`, its `nbytes`, how many tensors of each GGUF type, and what is not as it
    was, in words."""

    path: Path
    nbytes: int
    types: dict[str, int]
    changes: tuple[str, ...]


def write_gguf(
    model: Any,
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    dense: bool = False,
    bar: Progress | None = None,
) -> Exported:
    """Write an opened model (what `run._source.open_model` gives) as GGUF to `path`, atomically.

    `name` is what the file calls itself (default: the model's own); `dense` writes every matrix as f16; `bar`
    advances with each tensor.
    Raises UserError for a family or a tokenizer that GGUF cannot express, and when the disk is full.
    """
    source: TensorSource = model.source
    architecture: Architecture = model.architecture
    goal = Path(path)
    if any(block.mixture is not None for block in architecture.blocks):
        raise UserError(
            f"{source.path} is a mixture of experts, which is not written as GGUF; export it to safetensors.",
            field="to",
            given=architecture.family,
            nearest="safetensors",
        )
    where = places(architecture)
    changes: list[str] = []
    tensors = [*_tensors(source, architecture, where, dense, changes), *extra_tensors(architecture)]
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.kind] = counts.get(tensor.kind, 0) + 1
    metadata = architecture_entries(architecture)
    metadata["general.name"] = ("string", name or source.path.stem)
    largest = max((one for one in tensors if len(one.shape) == 2), key=lambda one: one.nbytes)
    metadata["general.file_type"] = ("u32", FILE_TYPES[largest.kind])
    metadata["general.quantization_version"] = ("u32", 2)
    data, template = model_texts(source)
    words = tokenizer_entries(
        data, source.path, architecture.vocabulary, architecture.start_of_text, model.end_of_text
    )
    metadata.update(words.entries)
    changes += words.changes
    if template is not None:
        metadata["tokenizer.chat_template"] = ("string", template)
    changes += _left_out(architecture)

    def check(written: Path) -> None:
        from haversack.models._gguf import GgufModel

        try:
            opened = GgufModel.open(written)
        except UserError as error:
            said = str(error).removeprefix(f"{written}: ").rstrip(".")
            raise UserError(
                f"{source.path}: GGUF cannot express this {architecture.family} ({said}).",
                field="model",
                given=architecture.family,
            ) from error
        found, wanted = _comparable(opened.architecture), _comparable(architecture)
        if found != wanted:
            raise UserError(
                f"{source.path}: GGUF cannot express {_difference(wanted, found)} of this "
                f"{architecture.family}.",
                field="model",
                given=architecture.family,
            )

    if bar is not None:
        tensors = [replace(tensor, data=_advancing(tensor, bar)) for tensor in tensors]
    nbytes = write_gguf_file(goal, metadata, tensors, check=check)
    return Exported(goal, nbytes, counts, tuple(changes))


def _advancing(tensor: TensorOut, bar: Progress) -> Callable[[], Iterator[Any]]:
    def data() -> Iterator[Any]:
        yield from tensor.data()
        bar.advance()

    return data


def model_texts(source: Any) -> tuple[bytes, str | None]:
    """tokenizer.json and the chat template of a pack, a folder or a GGUF file. Raises UserError when there is
    no tokenizer."""
    import json

    def read(name: str) -> bytes | None:
        if hasattr(source, "read_file"):
            record = getattr(source, "record", None)
            if record is not None and name not in record.files:
                return None
            try:
                return bytes(source.read_file(name))
            except UserError:
                if name == "tokenizer.json":
                    raise
                return None
        file = source.path / name
        return file.read_bytes() if file.is_file() else None

    data = read("tokenizer.json")
    if data is None:
        data = Path(getattr(source, "tokenizer_path", source.path / "tokenizer.json")).read_bytes()
    template = read("chat_template.jinja")
    if template is not None:
        return data, template.decode("utf-8")
    config = read("tokenizer_config.json")
    try:
        found = json.loads(config).get("chat_template") if config else None
    except (ValueError, AttributeError, RecursionError):
        found = None
    return data, found if isinstance(found, str) else None


def _tensors(
    source: TensorSource,
    architecture: Architecture,
    where: dict[str, Place],
    dense: bool,
    changes: list[str],
) -> Iterator[TensorOut]:
    """GGUF's tensors in order of use; each is made when it is written."""
    parts: dict[str, list[str]] = {}
    for name, place in where.items():
        parts.setdefault(place.name, []).append(name)
    notes: dict[str, int] = {}
    for file_name, names in parts.items():
        entries = [source.tensors[name] for name in names]
        shape = architecture.tensors()[names[0]]
        rows = where[names[0]].rows
        if len(shape) == 1:
            wide = (len(names), shape[0]) if len(names) > 1 and _heads_apart(names) else (rows,)
            yield TensorOut(file_name, "f32", wide, _Vector(source, entries, where))
            continue
        kind, note = _kind(source, entries, dense)
        positions = architecture.positions if hasattr(architecture, "positions") else None
        if positions is not None and names[0] == positions.weight:
            kind, note = "f32", None
        if note:
            notes[note] = notes.get(note, 0) + 1
        yield TensorOut(file_name, kind, (rows, *shape[1:]), _Rows(source, entries, where, kind))
    changes += [f"{count} {'matrix' if count == 1 else 'matrices'}: {note}" for note, count in notes.items()]


def _heads_apart(names: list[str]) -> bool:
    return ".norms." in names[0]


def _kind(source: TensorSource, entries: list[TensorEntry], dense: bool) -> tuple[str, str | None]:
    """GGUF's type for a matrix of these parts, and what it changes."""
    kinds = {(entry.kind, entry.group) for entry in entries}
    columns = entries[0].shape[1]
    floats = {entry.kind for entry in entries} <= {"f32", "f16", "bf16"}
    if floats and len(kinds) == 1 and not dense:
        return entries[0].kind, None
    if dense or floats:
        same = {entry.kind for entry in entries} <= {"f16"}
        return "f16", None if same else "written as f16"
    if columns % 32 or len(kinds) > 1:
        why = f"rows of {columns} are no whole blocks of 32" if columns % 32 else "parts of several types"
        return "f16", f"written as f16, since {why}"
    if entries[0].kind == "int4":
        return "q4_0", None
    if entries[0].kind == "int3":
        return "q4_0", "int3 written as Q4_0: the same numbers in 4 bits"
    if entries[0].group is not None:
        return "q8_0", None
    worst = max(_rounding(source, entry) for entry in entries)
    if worst > ROUNDED:
        return "f16", "int8 with a scale too small for f16, written as f16"
    return "q8_0", "int8 with one scale a row, written as Q8_0: the scale is rounded to f16"


def _rounding(source: TensorSource, entry: TensorEntry) -> float:
    """The most that f16 changes a scale of an int8 matrix, as a share of it."""
    blocks = -(-entry.shape[0] // 16)
    data = np.frombuffer(source.bytes(entry.name), np.uint8).reshape(blocks, -1)
    scales = np.ascontiguousarray(data[:, -64:]).view("<f4").reshape(-1)[: entry.shape[0]]
    used = scales[scales != 0]
    if used.size == 0:
        return 0.0
    with np.errstate(over="ignore"):
        return float((np.abs(used.astype(np.float16).astype(np.float32) - used) / np.abs(used)).max())


@dataclass(frozen=True)
class _Vector:
    """Norms and biases, one after the other, as f32."""

    source: TensorSource
    entries: list[TensorEntry]
    where: dict[str, Place]

    def __call__(self) -> Iterator[Any]:
        for entry in self.entries:
            place = self.where[entry.name]
            data = self.source.bytes(entry.name)
            if entry.kind == "bf16":
                values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(data, "<f4" if entry.kind == "f32" else "<f2").astype(np.float32)
            if place.heads:
                values = values[_file_order(len(values), len(values) // place.heads)]
            if place.shift:
                values = values + np.float32(place.shift)
            yield np.ascontiguousarray(values).data


@dataclass(frozen=True)
class _Rows:
    """The rows of matrices, one after the other, as `kind`."""

    source: TensorSource
    entries: list[TensorEntry]
    where: dict[str, Place]
    kind: str

    def __call__(self) -> Iterator[Any]:
        for entry in self.entries:
            yield from self._rows(entry, self.where[entry.name].heads)

    def _rows(self, entry: TensorEntry, heads: int) -> Iterator[Any]:
        rows, columns = entry.shape
        head = rows // heads if heads else 1
        unit = int(np.lcm(16, head))
        step = max(unit, PIECE // (4 * columns) // unit * unit)
        data = self.source.bytes(entry.name)
        packed = 16 if entry.layout == "rows16-1" else 1
        per_unit = entry.nbytes // -(-rows // packed)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            part = data[start // packed * per_unit : -(-stop // packed) * per_unit]
            matrix = Matrix.from_bytes(entry.kind, (stop - start, columns), entry.group, entry.layout, part)
            order = _file_order(stop - start, head) if heads else None
            yield np.ascontiguousarray(self._stored(matrix, order)).reshape(-1).view(np.uint8).data

    def _stored(self, matrix: Matrix, order: Any) -> Any:
        if self.kind in ("q4_0", "q8_0"):
            if matrix.kind == "int8" and matrix.group is None:
                matrix = _grouped(matrix)
            return to_blocks(matrix, order)
        if self.kind == matrix.kind:
            number = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}[self.kind]
            held = np.frombuffer(matrix.data, number).reshape(matrix.shape)
            return held if order is None else held[order]
        values = unpack(matrix) if order is None else unpack(matrix)[order]
        return values.astype("<f4" if self.kind == "f32" else "<f2")


def _grouped(matrix: Matrix) -> Matrix:
    """int8 with one scale a row as int8 in groups of 32, the scale rounded to f16."""
    from haversack.kernels import pack_int8
    from haversack.kernels._matrix import unpack_integers

    integers, scales = unpack_integers(matrix)
    return pack_int8(integers, np.repeat(scales[:, None], matrix.columns // 32, axis=1), 32)


def _file_order(rows: int, head: int) -> Any:
    """Our rows in the order of the file: the two halves of every head interleaved."""
    halves = np.arange(rows, dtype=np.int32).reshape(-1, 2, head // 2)
    return np.ascontiguousarray(halves.transpose(0, 2, 1)).reshape(-1)


def _left_out(architecture: Architecture) -> list[str]:
    windows = {block.attention.window for block in architecture.blocks if block.attention is not None}
    windows.discard(None)
    if not windows or architecture.family in WINDOWED:
        return []
    shown = min(window for window in windows if window is not None)
    return [
        f"attention: GGUF's {architecture.family} has no window; beyond {shown} tokens all of a text is seen"
    ]


def _comparable(architecture: Architecture) -> Architecture:
    """`architecture` without what GGUF may say in other words: its family's second name, tokens, windows."""
    from haversack.models._architecture import Attention

    family = "llama" if architecture.family == "mistral" else architecture.family
    blocks = architecture.blocks
    if family not in WINDOWED:
        blocks = tuple(
            replace(
                block,
                branches=tuple(
                    replace(branch, layer=replace(branch.layer, window=None))
                    if isinstance(branch.layer, Attention)
                    else branch
                    for branch in block.branches
                ),
            )
            for block in blocks
        )
    return replace(architecture, family=family, blocks=blocks, start_of_text=None, end_of_text=())


def _difference(wanted: Architecture, found: Architecture) -> str:
    """The fields in which two architectures differ, in words."""
    from dataclasses import fields

    def walk(one: Any, other: Any, at: str) -> Iterator[str]:
        if type(one) is not type(other) or not hasattr(one, "__dataclass_fields__"):
            if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
                for a, b in zip(one, other, strict=True):
                    yield from walk(a, b, at)
            elif one != other:
                yield f"{at}={one!r}"
            return
        for item in fields(one):
            yield from walk(getattr(one, item.name), getattr(other, item.name), item.name)

    return ", ".join(list(dict.fromkeys(walk(wanted, found, "architecture")))[:3])
