"""Labelled rows to learn from: pictures and meshes in class folders, files of pictures (MNIST's, CIFAR's) or
a table of texts, split once and for all.

Which rows are held out follows from the rows' own names and the seed, not from their order: adding pictures
leaves most others where they were. From each class the same share is kept apart, at least one row where the
class has two; the same text twice is never on both sides. A set that comes in parts keeps them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats._row_files import LabelledRows
from haversack.formats.idx import is_idx
from haversack.formats.pictures import (
    PictureFolder,
    fitted,
    is_archive,
    read_folder,
    read_picture,
    shown,
    unpacked,
)
from haversack.formats.tables import Table, is_table, read_table
from haversack.train._network import I64, Array, Batch, Features, Form, Pictures, Tokens

HELD_OUT_SHARE = 0.2


@dataclass(frozen=True)
class Examples:
    """Rows with labels. `read(indices)` gives the inputs of rows, as the network's form has them; `labels`
    i64 [rows] count `classes`; `learned` and `held_out` are the rows of each side; `left_out` names rows that
    were skipped, with the reason."""

    classes: tuple[str, ...]
    labels: I64
    learned: I64
    held_out: I64
    read: Callable[[I64], Array]
    keys: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def mark(self) -> str:
        """Tells whether these are the rows and sides of an earlier run, by their names."""
        found = hashlib.sha256("\0".join((*self.classes, "", *self.keys)).encode())
        for part in (self.labels, self.learned, self.held_out):
            found.update(np.ascontiguousarray(part).data)
        return found.hexdigest()[:16]

    def batch(self, rows: I64) -> Batch:
        """Those rows."""
        return Batch(self.read(rows), self.labels[rows])

    def order(self, epoch: int, seed: int) -> I64:
        """The rows to learn from, in the order of `epoch`."""
        return self.learned[np.random.default_rng([seed, 0xDA7A, epoch]).permutation(len(self.learned))]

    def validation(self, seed: int) -> Examples:
        """The rows to learn from, split again: for choosing settings without a look at the held-out ones."""
        keys = [self.keys[row] for row in self.learned]
        learned, kept = split(self.labels[self.learned], keys, seed + 1)
        return replace(self, learned=self.learned[learned], held_out=self.learned[kept])


def split(labels: I64, keys: Sequence[str], seed: int, share: float = HELD_OUT_SHARE) -> tuple[I64, I64]:
    """(rows to learn from, held-out rows), rising; `keys` tell rows apart, equal ones stay together.

    In each class keys are put in the order of their SHA-256 with the seed, and the first `share` of them,
    rounded to the nearest, at least one of two, is held out.
    """
    hashes = [hashlib.sha256(f"{seed}\0{key}".encode()).digest() for key in keys]
    held: set[bytes] = set()
    for label in np.unique(labels):
        own = sorted({hashes[row] for row in np.flatnonzero(labels == label)})
        count = 0 if len(own) < 2 else min(len(own) - 1, max(1, math.floor(share * len(own) + 0.5)))
        held.update(own[:count])
    apart = np.array([value in held for value in hashes], bool)
    return np.flatnonzero(~apart), np.flatnonzero(apart)


def is_labelled(paths: Sequence[Path]) -> bool:
    """Whether `paths` are one folder of rows (or a packed one, or a set of the registry), a file of pictures
    or a table, rather than plain texts. Raises UserError for several of which one is."""
    kinds = [
        path.is_dir() or is_archive(path) or is_table(path) or is_idx(path) or _registered(path)
        for path in paths
    ]
    if any(kinds) and len(paths) > 1:
        raise UserError(
            "several --data are plain texts; give one folder of pictures or one table alone.",
            field="data",
            given=[str(path) for path in paths],
        )
    return any(kinds)


def read_examples(
    path: Path,
    form: Form,
    *,
    seed: int = 0,
    text: str = "text",
    label: str = "label",
    skip_broken: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Examples:
    """The rows at `path` in the form that a network takes: pictures and clouds of points from a folder, an
    archive, the registry or files of numbers; texts from a table.

    Every picture of a folder is read once to its end before anything is learned; `progress` is called with
    how many. A broken one is named and ends it, or with `skip_broken` is left out. Raises UserError for data
    of another form, without rows, or of a single class; DamagedFileError for a broken picture or mesh.
    """
    if is_table(path):
        if not isinstance(form, Tokens):
            raise _other_form(path, "a table of texts", form)
        return _of_table(read_table(path, text, label), form, seed)
    if _registered(path):
        from haversack.core._datasets import dataset_path

        path = dataset_path(str(path))
    place = unpacked(path) if is_archive(path) else path
    if takes_meshes(form):
        return _of_meshes(place, form, seed, skip_broken, progress)
    if not isinstance(form, Pictures):
        raise _other_form(path, "pictures", form)
    arrays = _files_of_rows(_alone(place))
    if arrays is not None:
        return _of_arrays(arrays, form, seed)
    return _of_pictures(read_folder(place), form, seed, skip_broken, progress)


def match_classes(examples: Examples, classes: tuple[str, ...], model: str) -> Examples:
    """`examples` with their labels counted as a head of `classes` has them.

    Raises UserError naming the first label that the head has no output for.
    """
    beyond = [name for name in examples.classes if name not in classes]
    if beyond:
        raise UserError(
            f"the label {beyond[0]} is beyond the head of {model}, whose classes are {shown(classes)}; use "
            "--head new to begin a head with the classes of the data.",
            field="data",
            given=beyond[0],
            nearest="--head new",
        )
    table = np.array([classes.index(name) for name in examples.classes], np.int64)
    return replace(examples, classes=classes, labels=table[examples.labels])


def _of_table(table: Table, form: Tokens, seed: int) -> Examples:
    classes = table.classes
    labels = np.array([classes.index(name) for name in table.labels], np.int64)
    learned, held_out = split(labels, table.texts, seed)
    _require_two(table.path, classes, held_out)

    def read(rows: I64) -> Array:
        return tokens_of([table.texts[row] for row in rows], form)

    return Examples(classes, labels, learned, held_out, read, table.texts)


def tokens_of(texts: Sequence[str], form: Tokens) -> Array:
    """i32 [texts, length]: the first `length` tokens of each, filled up with -1."""
    found = np.full((len(texts), form.length), -1, np.int32)
    for row, text in zip(found, texts, strict=True):
        tokens = list(form.tokenizer.encode(text, special=False))[: form.length]
        row[: len(tokens)] = tokens
    return found


def _of_pictures(
    folder: PictureFolder,
    form: Pictures,
    seed: int,
    skip_broken: bool,
    progress: Callable[[int], None] | None,
) -> Examples:
    left_out = []
    whole = []
    for index, path in enumerate(folder.files):
        try:
            read_picture(path, form.height, form.width, form.channels)
            whole.append(index)
        except DamagedFileError as error:
            if not skip_broken:
                raise DamagedFileError(
                    error.path, error.what, field="data", advice="Remove it, or use --skip-broken."
                ) from error
            left_out.append((str(path), error.what))
        if progress is not None:
            progress(len(folder.files))
    files = [folder.files[index] for index in whole]
    keys = tuple(folder.key(index) for index in whole)
    labels = np.array([folder.labels[index] for index in whole], np.int64)
    for number, name in enumerate(folder.classes):
        if not (labels == number).any():
            raise UserError(
                f"every picture of the class {name} is broken ({left_out[0][0]}: {left_out[0][1]}).",
                field="data",
                given=name,
            )
    apart = None if folder.held_out is None else [folder.held_out[index] for index in whole]
    learned, held_out = _sides(labels, keys, apart, seed)
    _require_two(folder.path, folder.classes, held_out)

    def read(rows: I64) -> Array:
        return np.stack([read_picture(files[row], form.height, form.width, form.channels) for row in rows])

    return Examples(folder.classes, labels, learned, held_out, read, keys, tuple(left_out))


def _files_of_rows(path: Path) -> LabelledRows | None:
    """The set of pictures in files of numbers at `path`, where that is what it is."""
    from haversack.formats.cifar import cifar_set
    from haversack.formats.idx import idx_set

    return idx_set(path) or (cifar_set(path) if path.is_dir() else None)


def _alone(folder: Path) -> Path:
    """`folder`, or what it holds where that is one folder, as archives have it."""
    inside = [each for each in folder.iterdir() if each.name[0] != "."] if folder.is_dir() else []
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _of_arrays(found: LabelledRows, form: Pictures, seed: int) -> Examples:
    def read(rows: I64) -> Array:
        values = found.read(rows)
        pictures = np.moveaxis(values, 1, 3) if values.ndim == 4 else values[..., None]
        return fitted(np.ascontiguousarray(pictures), form.height, form.width, form.channels)

    return _of_rows(found, read, seed, ())


def _of_meshes(
    path: Path, form: Form, seed: int, skip_broken: bool, progress: Callable[[int], None] | None
) -> Examples:
    from haversack.formats.off import has_meshes, mesh_set

    assert isinstance(form, Features)
    if not path.is_dir() or not has_meshes(path):
        raise _other_form(path, "no folder of meshes", form)
    found, left_out = mesh_set(path, form.shape[0], skip_broken=skip_broken, progress=progress)
    return _of_rows(found, found.read, seed, left_out)


def _of_rows(
    found: LabelledRows, read: Callable[[I64], Array], seed: int, left_out: tuple[tuple[str, str], ...]
) -> Examples:
    learned, held_out = _sides(found.labels, found.keys, found.held_out, seed)
    _require_two(found.path, found.classes, held_out)
    return Examples(found.classes, found.labels, learned, held_out, read, found.keys, left_out)


def _sides(labels: I64, keys: Sequence[str], held_out: Any, seed: int) -> tuple[I64, I64]:
    """The rows of each side: as the set has them (`held_out` by row), or split."""
    if held_out is None:
        return split(labels, keys, seed)
    apart = np.array(held_out, bool)
    return np.flatnonzero(~apart), np.flatnonzero(apart)


def _require_two(path: Path, classes: tuple[str, ...], held_out: I64) -> None:
    if len(classes) < 2:
        raise UserError(
            f"{path} has a single class ({classes[0]}); there is nothing to tell apart.",
            field="data",
            given=classes[0],
        )
    if not len(held_out):
        raise UserError(
            f"{path} leaves nothing to judge by: give each class at least two rows.", field="data"
        )


def _other_form(path: Path, what: str, form: Form) -> UserError:
    takes = {"Pictures": "a folder of pictures", "Tokens": "a table of texts", "Features": "measured values"}
    wanted = takes[type(form).__name__]
    if takes_meshes(form):
        wanted = "a folder of meshes (.off)"
    return UserError(
        f"{path} is {what}, and this network takes {wanted}.", field="data", given=str(path), nearest=wanted
    )


def _registered(path: Path) -> bool:
    from haversack.core._datasets import datasets

    return not path.exists() and str(path) in datasets()


def batches(rows: I64, size: int) -> Iterator[I64]:
    """`rows` in pieces of `size`, the last one shorter."""
    return (rows[at : at + size] for at in range(0, len(rows), size))


def picture_inputs(path: Path, form: Pictures) -> Any:
    """One picture as a network takes it, [1, height, width, channels]."""
    return read_picture(path, form.height, form.width, form.channels)[None]


def takes_meshes(form: Form) -> bool:
    """Whether a network of this form looks at clouds of points in space."""
    return isinstance(form, Features) and len(form.shape) == 2 and form.shape[1] == 3


def mesh_inputs(path: Path, form: Form) -> Any:
    """One mesh as such a network takes it, [1, points, 3]."""
    from haversack.formats.off import read_off, surface_points

    assert isinstance(form, Features)
    return surface_points(*read_off(path), form.shape[0], 0)[None]
