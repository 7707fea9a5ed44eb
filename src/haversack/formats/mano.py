"""MANO's hand model (`MANO_RIGHT.pkl`, `MANO_LEFT.pkl`), which everybody fetches for themselves under its
licence.

Format (Romero, Tzionas, Black, "Embodied Hands", 2017): a pickle of Python 2 with a dictionary. Read here are
`v_template` [778, 3] metres, `shapedirs` [778, 3, 10] (an array, or chumpy's object about one), `J_regressor`
[16, 778] (an array, or scipy's sparse matrix by columns) and `kintree_table` [2, 16]. [recalled: which
classes the file's objects have, and the vertices of fingertips.] An .npz with the same names does as well.

Nothing in the file is run (`_python2_pickle.py`): objects of the classes named here are kept as what they
hold, any other name is refused.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats._plain_pickle import KINDS, NAMES, Refused, _Array, _array, _Kind, _Name
from haversack.formats._python2_pickle import ACTIONS, _Python2

F64 = npt.NDArray[np.float64]
LARGEST = 64 << 20
VERTICES, JOINTS, BETAS = 778, 16, 10
PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
"""Wrist; index, middle, little, ring and thumb, three joints each."""
TIPS = (745, 317, 444, 556, 673)
"""Vertices at the ends of thumb, index, middle, ring and little finger."""
FINGERS = (13, 1, 4, 10, 7)
"""Where thumb, index, middle, ring and little finger begin among the joints."""
CLASSES = {
    "chumpy.ch Ch": "array about x",
    "chumpy.reordering Select": "part of an array",
    "scipy.sparse.csc csc_matrix": "sparse",
    "scipy.sparse._csc csc_matrix": "sparse",
    "__builtin__ set": "set",
}
WIDER = {**KINDS, "u4": np.uint32, "u2": np.uint16, "u8": np.uint64, "b1": np.bool_}


@dataclass(frozen=True)
class Mano:
    """21 joints at rest, wrist at 0, then thumb to little finger, four each, metres: `rest` [21, 3], and how
    each of ten shape parameters moves them, `moves` [21, 3, 10]; `right` tells whose hand it is."""

    rest: F64
    moves: F64
    right: bool

    def shaped(self, betas: F64) -> F64:
        """Joints at rest [21, 3] of a hand of shape `betas` [10]."""
        found: F64 = self.rest + self.moves @ betas
        return found


@dataclass
class _Record:
    """An object of one of CLASSES and what it holds."""

    meaning: str
    state: dict[Any, Any] | None = None


def read_mano(path: Path) -> Mano:
    """The hand of a file, whose name says LEFT or RIGHT. Raises UserError for an absent one or another name,
    DamagedFileError for one that holds something else."""
    sides = [side for side in ("left", "right") if side in path.name.lower()]
    if len(sides) != 1:
        raise UserError(
            f"{path.name} does not say whose hand it holds; allowed are names with LEFT or RIGHT.",
            field="mano",
            given=str(path),
        )
    try:
        if path.stat().st_size > LARGEST:
            raise DamagedFileError(path, f"it has more than {LARGEST >> 20} MiB, a hand model has less")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}).", field="mano", given=str(path)
        ) from error
    try:
        found = _arrays(path) if zipfile.is_zipfile(path) else _machine(data)
        return _mano(found, sides[0] == "right")
    except (Refused, ValueError, IndexError, struct.error, UnicodeError, zipfile.BadZipFile) as error:
        raise DamagedFileError(path, f"it is no hand of MANO ({error})", field="mano") from error


def _mano(found: Any, right: bool) -> Mano:
    """The joints of what the file holds."""
    if not isinstance(found, dict):
        raise Refused("it holds no dictionary")
    try:
        vertices, shapes, regressor, tree = (
            np.asarray(_plain(found[name]))
            for name in ("v_template", "shapedirs", "J_regressor", "kintree_table")
        )
    except KeyError as error:
        raise Refused(f"it has no {error.args[0]}") from error
    for name, array, shape in (
        *(("v_template", vertices, (VERTICES, 3)), ("J_regressor", regressor, (JOINTS, VERTICES))),
        *(("shapedirs", shapes[..., :BETAS], (VERTICES, 3, BETAS)), ("kintree_table", tree, (2, JOINTS))),
    ):
        if array.shape != shape or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise Refused(f"{name} is {array.dtype} {list(array.shape)}, not numbers {list(shape)}")
    if tuple(int(parent) for parent in tree[0, 1:]) != PARENTS[1:]:
        raise Refused("its joints hang together in another way")
    shapes = shapes[..., :BETAS].astype(np.float64)
    rest = _ordered(regressor @ vertices, vertices)
    moves = _ordered(np.einsum("jv,vck->jck", regressor, shapes), shapes)
    return Mano(rest - rest[0], moves - moves[0], right)


def _ordered(joints: F64, vertices: F64) -> F64:
    """16 joints and the tips among the vertices as 21 joints, wrist and thumb first."""
    parts = [joints[:1]]
    for first, tip in zip(FINGERS, TIPS, strict=True):
        parts += [joints[first : first + 3], vertices[tip : tip + 1]]
    return np.concatenate(parts).astype(np.float64)


def _arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


# ---- the pickle


def _plain(value: Any) -> Any:
    """An array, out of the objects about it."""
    if isinstance(value, _Array):
        if value.values is None:
            raise Refused("an array has no state")
        return value.values
    if isinstance(value, _Record):
        state = value.state or {}
        try:
            if value.meaning == "array about x":
                return _plain(state["x"])
            if value.meaning == "part of an array":
                whole, at = np.asarray(_plain(state["a"])), np.asarray(_plain(state["idxs"]))
                return whole.ravel()[at].reshape(state["preferred_shape"])
            if value.meaning == "sparse":
                return _dense(state)
        except (KeyError, TypeError) as error:
            raise Refused(f"its {value.meaning} lacks {error}") from error
    if isinstance(value, np.ndarray):
        return value
    raise Refused(f"it holds a {type(value).__name__} where an array should be")


def _dense(state: dict[Any, Any]) -> F64:
    """A matrix that is stored by columns."""
    data, rows, starts = (np.asarray(_plain(state[name])) for name in ("data", "indices", "indptr"))
    shape = tuple(int(side) for side in state.get("_shape", state.get("shape", ())))
    if len(shape) != 2 or max(shape) > VERTICES or len(starts) != shape[1] + 1 or len(data) != len(rows):
        raise Refused("a sparse matrix's parts do not fit together")
    ends = starts.astype(np.int64)
    counts = ends[1:] - ends[:-1]
    if (counts < 0).any() or counts.sum() != len(data) or ends[0] != 0:
        raise Refused("a sparse matrix's columns do not fit together")
    found = np.zeros(shape)
    np.add.at(found, (rows.astype(np.int64), np.repeat(np.arange(shape[1]), counts)), data)
    return found


def _machine(data: bytes) -> Any:
    return _Mano(data).run()


class _Mano(_Python2):
    """The machine of plain values, which keeps objects of CLASSES as what they hold."""

    def run(self) -> Any:
        while (code := self.take(1)) != b".":
            action = MORE.get(code)
            if action is None:
                raise Refused(f"it has the instruction 0x{code[0]:02x}, which a hand model does not need")
            action(self)
        if len(self.stack) != 1:
            raise Refused("its end leaves no single value")
        return self.stack.pop()

    def name(self) -> None:
        asked = f"{self.line()} {self.line()}"
        meaning = NAMES.get(asked) or CLASSES.get(asked)
        if meaning is None:
            raise Refused(f"it asks for {asked.replace(' ', '.')}, which is no part of a hand model")
        self.push(_Name(meaning))

    def make_object(self) -> None:
        """An object of a class without arguments."""
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, _Name) or kind.meaning not in CLASSES.values() or arguments != ():
            raise Refused("it makes an object of something else")
        self.push(_Record(kind.meaning))

    def reduce(self) -> None:
        arguments, function = self.stack[-1], self.stack[-2]
        match function, arguments:
            case _Name(meaning="set"), ([],):  # chumpy's notes of what changed
                del self.stack[-2:]
                self.push(None)
            case _Name(meaning="dtype"), (str() as kind, *_) if kind in WIDER:
                del self.stack[-2:]
                self.push(_Kind(np.dtype(WIDER[kind])))
            case _:
                super().reduce()

    def put_tuple(self, items: tuple[Any, ...]) -> None:
        if len(items) == 1 and items[0] == [] and isinstance(items[0], list):
            self.push(items)  # of an empty set
            return
        super().put_tuple(items)

    def build(self) -> None:
        match self.stack[-2], self.stack[-1]:
            case _Record(state=None) as target, dict() as state:
                self.stack.pop()
                target.state = state
            case _Array(values=None) as target, (
                1,
                tuple() as shape,
                _Kind() as kind,
                bool() as columns,
                raw,
            ):
                self.stack.pop()
                data = raw.encode("latin1") if isinstance(raw, str) else raw  # short ones are 8-bit texts
                target.values = _array(shape, kind.dtype, data if isinstance(data, bytes) else b"")
                if columns:
                    target.values = target.values.reshape(shape[::-1]).T
            case _:
                super().build()


MORE: dict[bytes, Callable[[Any], None]] = {**ACTIONS, b"\x81": lambda machine: machine.make_object()}
