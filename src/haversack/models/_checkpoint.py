"""A checkpoint of the hub seen through its architecture: every tensor under its own name, single and upright.

Families differ in how they store the same matrices. Rows of a tensor that holds several are the same bytes at
an offset, so they are mapped, copied and streamed like any others. A matrix stored as [inputs, outputs] has
to be turned over, which takes a copy: `bytes` makes one, `upright` one from bytes that were read already.
Checkpoints of a bare model leave the first part of every name out; it is put back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from haversack.core.errors import DamagedFileError, UserError, nearest_name
from haversack.core.pack import TensorEntry, TensorSource
from haversack.models._architecture import Architecture, Part
from haversack.models._factored import FactoredCheckpoint, FactoredHub
from haversack.models._rearranged import Rearranged

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    U8 = npt.NDArray[np.uint8]
    Array = npt.NDArray[Any]

PREFIXES = ("model.", "transformer.")
PIECE = 1 << 20
"""Bytes that are turned over at once; they are resident beside what they become."""
NUMBERS = {"f32": "<u4", "f16": "<u2", "bf16": "<u2"}

Source = TypeVar("Source", bound=TensorSource)


class Turned(TensorEntry, frozen=True):
    """A matrix [outputs, inputs] that lies in its file as columns `first` and on of one [inputs, `stride`],
    which starts at `offset`. `nbytes` are its own.
    """

    first: int = 0
    stride: int = 0


def extent(entry: TensorEntry) -> int:
    """Bytes from `entry.offset` on that hold a tensor, and, of a turned one, its neighbours."""
    if isinstance(entry, Turned):
        return entry.nbytes // entry.shape[0] * entry.stride
    return entry.stored if isinstance(entry, Rearranged) else entry.nbytes


def checkpoint(source: Source, architecture: Architecture) -> Source:
    """`source`, or a view of it that has the names and shapes of `architecture` where its own differ."""
    bare = _bare(source, architecture)
    view: Any = source
    if bare or (architecture.parts and architecture.parts[0].name not in source.tensors):
        view = Checkpoint(source, architecture, bare)
    if isinstance(source, FactoredHub):
        view = FactoredCheckpoint(view, source, architecture, bare)
    return cast(Source, view)


def _bare(source: TensorSource, architecture: Architecture) -> str:
    """What the names of `source` lack in front."""
    name = architecture.embedding
    for prefix in PREFIXES:
        if (
            name.startswith(prefix)
            and name not in source.tensors
            and name.removeprefix(prefix) in source.tensors
        ):
            return prefix
    return ""


class Checkpoint:
    """The view of `source`, a `TensorSource`; made by `checkpoint`. All else is asked of `source`.

    `tensors` has what could be found, `held` the names and shapes that a checkpoint must hold for it.
    """

    def __init__(self, source: TensorSource, architecture: Architecture, bare: str) -> None:
        self.source = source
        self._bare = bare
        self._holders = {part.name: part for part in architecture.parts}
        self.held = {self.own(name): shape for name, shape in architecture.checkpoint_tensors().items()}
        self.tensors: dict[str, TensorEntry] = {}
        for name, shape in architecture.tensors().items():
            entry = self._seen(name, shape)
            if entry is not None:
                self.tensors[name] = entry

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # of a view that is being copied
            raise AttributeError(name)
        return getattr(self.source, name)

    @property
    def path(self) -> Path:
        """The folder."""
        return self.source.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tensors."""
        return self.source.files

    def own(self, name: str) -> str:
        """A name of the hub as this checkpoint spells it."""
        return name.removeprefix(self._bare)

    def _seen(self, name: str, shape: tuple[int, ...]) -> TensorEntry | None:
        part = self._holders.get(name)
        entry = self.source.tensors.get(self.own(name if part is None else part.holder))
        if entry is None:
            return None
        fields = (entry.kind, shape, entry.group, entry.layout, entry.file)
        if part is None:
            return TensorEntry(name, entry.kind, entry.shape, *fields[2:], entry.offset, entry.nbytes)
        if entry.shape != part.shape or entry.kind not in NUMBERS:
            return None
        numbers = shape[0] * (shape[1] if len(shape) == 2 else 1)
        nbytes = numbers * _number(entry)
        if part.transposed:
            return Turned(name, *fields, entry.offset, nbytes, part.first, part.shape[1])
        return TensorEntry(name, *fields, entry.offset + part.first * (nbytes // shape[0]), nbytes)

    def bytes(self, name: str) -> memoryview:
        """The tensor's bytes: a read-only view of the mapped file, or, for a turned matrix, of a copy.

        Raises UserError for an unknown name.
        """
        entry = self.tensors.get(name)
        if entry is None:
            nearest = nearest_name(name, self.tensors)
            raise UserError(
                f"{self.path} holds no tensor {name}.", field="tensor", given=name, nearest=nearest
            )
        if isinstance(entry, Turned):
            copy: Any = self._upright(entry)
            return memoryview(copy).toreadonly()
        part = self._holders.get(name)
        data = self.source.bytes(self.own(name if part is None else part.holder))
        if part is None:
            return data
        start = part.first * (entry.nbytes // entry.shape[0])
        return data[start : start + entry.nbytes]

    def _upright(self, entry: Turned) -> U8:
        """Read in pieces that leave the page cache, so that copy and file are never resident together."""
        paths = {path.name: path for path in self.files}
        if entry.file not in paths:  # in memory
            return upright(entry, self.source.bytes(self.own(self._holders[entry.name].holder)))
        path, row = paths[entry.file], entry.stride * _number(entry)
        out, turn = _turning(entry)
        step = max(1, PIECE // row)
        piece = memoryview(bytearray(min(step, entry.shape[1]) * row))
        with path.open("rb", buffering=0) as file:
            for start in range(0, entry.shape[1], step):
                stop = min(start + step, entry.shape[1])
                at, data = entry.offset + start * row, piece[: (stop - start) * row]
                got = os.preadv(file.fileno(), [data], at)
                if got != len(data):
                    raise DamagedFileError(path, f"it ends at byte {at + got}")
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), at, got, os.POSIX_FADV_DONTNEED)
                turn(start, stop, data)
        return out


def _number(entry: TensorEntry) -> int:
    return 4 if entry.kind == "f32" else 2


def _turning(entry: Turned) -> tuple[U8, Callable[[int, int, Any], None]]:
    """Room for the upright matrix, and what fills it: (first input, last, their bytes)."""
    import numpy as np

    number = NUMBERS[entry.kind]
    out = np.empty(entry.shape, number)
    tile = 64 // _number(entry)

    def turn(start: int, stop: int, data: Any) -> None:
        held = np.frombuffer(data, number).reshape(stop - start, entry.stride)
        held = held[:, entry.first : entry.first + entry.shape[0]]
        for at in range(0, stop - start, tile):  # one cache line of each output at a time
            out[:, start + at : min(start + at + tile, stop)] = held[at : at + tile].T

    return out.view(np.uint8).reshape(-1), turn


def upright(entry: Turned, data: Any) -> U8:
    """The matrix [outputs, inputs] as bytes, out of `data`, the `extent` of `entry`; a copy."""
    out, turn = _turning(entry)
    turn(0, entry.shape[1], data)
    return out


def hub_tensors(
    architecture: Architecture, tensors: Mapping[str, Array] | Callable[[str], Array]
) -> Iterator[tuple[str, Array]]:
    """(name, array) of a whole model as a checkpoint of the hub keeps it, from single, upright ones; one
    after the other, so that no more than one of the hub's is made at a time.
    """
    import numpy as np

    read = tensors if callable(tensors) else tensors.__getitem__
    parts: dict[str, list[Part]] = {}
    for part in architecture.parts:
        parts.setdefault(part.holder, []).append(part)
    for name in architecture.checkpoint_tensors():
        if name not in parts:
            yield name, read(name)
            continue
        pieces = [read(part.name) for part in sorted(parts[name], key=lambda part: part.first)]
        whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        yield name, np.ascontiguousarray(whole.T) if parts[name][0].transposed else whole
