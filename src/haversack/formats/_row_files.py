"""Labelled rows that lie in files of numbers, one behind the other: read where they lie, a few at a time.

A set of 60,000 pictures takes no memory but its labels: rows are read from their place in the file, which is
neither mapped nor loaded. What comes packed (gzip, pickles) is laid out so once, in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from haversack.core._files import cache_folder, explain_write_errors, fingerprint, put_in_place, remove
from haversack.core._files import partial_path as partial
from haversack.core.errors import DamagedFileError, UserError

I64 = NDArray[np.int64]
HELD_OUT_NAMES = ("test", "t10k", "val", "valid", "validation")
"""What the part that is kept for judging is called, the first that is there."""


@dataclass(frozen=True)
class RowFile:
    """`count` rows of `shape` and `dtype` (as stored) in `path`: the first begins at byte `start`, each
    `stride` bytes behind the one before."""

    path: Path
    count: int
    start: int
    stride: int
    shape: tuple[int, ...]
    dtype: str = "|u1"

    def read(self, rows: Sequence[int], out: NDArray[Any]) -> None:
        """Those rows into `out` [len(rows), *shape]. Raises DamagedFileError for a file that became
        shorter."""
        dtype = np.dtype(self.dtype)
        nbytes = int(np.prod(self.shape, dtype=np.int64)) * dtype.itemsize
        with self.path.open("rb") as file:
            for at, row in enumerate(rows):
                data = os.pread(file.fileno(), nbytes, self.start + int(row) * self.stride)
                if len(data) != nbytes:
                    raise DamagedFileError(self.path, f"it ends before its row {row}", field="data")
                out[at] = np.frombuffer(data, dtype).reshape(self.shape)


@dataclass(frozen=True)
class Part:
    """Rows of one file with the number of the class of each, as the file has it; `held_out`: they are kept
    for judging."""

    file: RowFile
    labels: I64
    held_out: bool


@dataclass(frozen=True)
class LabelledRows:
    """All rows of a set. `labels` i64 [n] count `classes`; `held_out` bool [n]: which rows the set itself
    keeps apart (None where it does not); `keys` tell rows apart wherever the set lies."""

    path: Path
    classes: tuple[str, ...]
    labels: I64
    held_out: NDArray[np.bool_] | None
    keys: tuple[str, ...]
    files: tuple[RowFile, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        return self.files[0].shape

    def read(self, rows: I64) -> NDArray[Any]:
        """Rows [n, *shape] in native byte order."""
        found = np.empty((len(rows), *self.shape), np.dtype(self.files[0].dtype).newbyteorder("="))
        edges = np.cumsum([0, *(file.count for file in self.files)])
        of_file = np.searchsorted(edges, rows, side="right") - 1
        for number in np.unique(of_file):
            chosen = np.flatnonzero(of_file == number)
            values = np.empty((len(chosen), *self.shape), found.dtype)
            self.files[number].read([int(row) for row in rows[chosen] - edges[number]], values)
            found[chosen] = values
        return found


def labelled_rows(path: Path, parts: Sequence[Part], names: Sequence[str] | None) -> LabelledRows:
    """The set of `parts`, whose labels count `names`; where nothing names them, those that are learned from
    are the classes, by their numbers.

    Raises UserError for a class without a row and for one that only the held-out part has, DamagedFileError
    for a label beyond the names and for rows of two shapes.
    """
    learned = [part for part in parts if not part.held_out] or list(parts)
    here = sorted({int(label) for part in learned for label in np.unique(part.labels)})
    if names is not None and len(here) < len(names):
        absent = next(name for number, name in enumerate(names) if number not in here)
        raise UserError(
            f"the class {absent} of {path} has no rows; add some or remove its name.",
            field="data",
            given=absent,
        )
    for part in parts:
        beyond = [label for label in np.unique(part.labels).tolist() if names and not 0 <= label < len(names)]
        if beyond:
            raise DamagedFileError(
                part.file.path, f"it has the label {beyond[0]}, and there are {len(names or ())} classes"
            )
        if part.file.shape != parts[0].file.shape:
            raise DamagedFileError(
                part.file.path, f"its rows are {part.file.shape}, and others are {parts[0].file.shape}"
            )
        odd = sorted({int(label) for label in np.unique(part.labels)} - set(here))
        if odd:
            name = names[odd[0]] if names else str(odd[0])
            raise UserError(
                f"the held-out part of {path} has the class {name}, which nothing that is learned from has.",
                field="data",
                given=name,
            )
    place = {label: number for number, label in enumerate(here)}
    labels = np.array([place[label] for part in parts for label in part.labels.tolist()], np.int64)
    held = np.repeat([part.held_out for part in parts], [len(part.labels) for part in parts])
    return LabelledRows(
        path,
        tuple(str(label) if names is None else names[label] for label in here),
        labels,
        held if 0 < held.sum() < len(held) else None,
        tuple(f"{part.file.path.name}:{row}" for part in parts for row in range(part.file.count)),
        tuple(part.file for part in parts),
    )


def laid_out(source: Path, name: str, write: Callable[[BinaryIO], None]) -> Path:
    """The file `name` in the cache that `write` makes of `source`, made again when `source` changes."""
    state = source.stat()
    mark = fingerprint(f"{source.name} {state.st_size} {state.st_mtime_ns}")
    goal = cache_folder() / "unpacked" / mark / name
    if goal.is_file():
        return goal
    with explain_write_errors(goal):
        goal.parent.mkdir(parents=True, exist_ok=True)
    made = partial(goal)
    try:
        with made.open("wb") as file:
            write(file)
        put_in_place(made, goal)
    finally:
        remove(made)
    return goal


def folders(path: Path) -> list[Path]:
    """The folders in `path`, by name."""
    return sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))


def is_held_out(name: str) -> bool:
    """Whether the name of a part says that it is kept for judging."""
    return name.lower() in HELD_OUT_NAMES
