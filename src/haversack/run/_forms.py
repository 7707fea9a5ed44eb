"""Weights of several parts: which there are, where their parts lie, and what stands in for a matrix.

A matrix NAME that is more than one tensor lies in a pack as tensors NAME.PART, and pack.json says under
`forms` how they make it up: the name of its form, its shape as one matrix, and what the form asks for. A form
is a file of `forms/`: `parts(entry)` says what must be there, in order of use, and `bind(entry, parts)` makes
what multiplies. Only matrices inside blocks (and an encoder's pooler and dense layers) have forms: embeddings
and the output matrix are read by rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from haversack.core._record import RECORD_NAME
from haversack.core.errors import DamagedFileError, UserError, nearest_name
from haversack.core.pack import Finding, Pack, TensorSource
from haversack.kernels._matrix import KINDS
from haversack.models._architecture import Linear

F32 = npt.NDArray[np.float32]
Entry = Mapping[str, Any]
"""What pack.json holds of one matrix: `form`, `shape`, and the form's own fields."""


@dataclass(frozen=True)
class Part:
    """What a part must be: its shape, and the kinds it may be stored in."""

    shape: tuple[int, ...]
    kinds: tuple[str, ...] = KINDS


class Bound(Protocol):
    """A matrix [rows, columns] of several parts, ready to multiply. `kind` is that of most of its numbers;
    `nbytes` is what its parts take.

    A form may also have `append(maker, x, out, bias, add)`, which puts the product into a native program
    (run/_program.py); blocks with a form that has none go through `layers/`.
    """

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> int: ...

    @property
    def kind(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    def multiply(self, x: F32, out: F32, *, activations: str, add: bool, bias: F32 | None) -> None:
        """out f32 [n, rows] = x f32 [n, columns] times the matrix, plus what `out` held if `add`, plus
        `bias`. Row-invariant.
        """

    def dense(self) -> F32:
        """The matrix that the parts stand for, f32 [rows, columns]."""


class Form(Protocol):
    """A file of `forms/`. It may also have `chain(entry, linear)`: the matrix as several, one after the
    other, for a graph.
    """

    def parts(self, entry: Entry) -> Mapping[str, Part]:
        """Part -> what it must be, in order of use. Raises ValueError for fields that cannot be."""

    def bind(self, entry: Entry, parts: Mapping[str, Any]) -> Bound:
        """The matrix over its bound parts: `kernels.Matrix` for two dimensions, arrays for others."""


def forms() -> tuple[str, ...]:
    """The forms there are: every file of forms/."""
    found = (Path(__file__).parent / "forms").glob("[!_]*.py")
    return tuple(sorted(path.stem.replace("_", "-") for path in found))


def form(name: str) -> Form:
    """The form `name`, imported when first asked for. Raises ValueError for an unknown one."""
    if name not in forms():
        raise ValueError(f"the form {name[:40]!r} is unknown here (known: {', '.join(forms())})")
    module = import_module(f"haversack.run.forms.{name.replace('-', '_')}")
    return cast(Form, module)


def forms_of(source: Any) -> Mapping[str, Entry]:
    """Matrix -> entry, for the matrices of `source` that have a form; sources without packs have none."""
    found: Mapping[str, Entry] = getattr(source, "forms", {})
    return found


def parts_of(name: str, entry: Entry) -> dict[str, Part]:
    """Tensor name -> what it must be, of the parts of the matrix `name`, in order of use."""
    return {f"{name}.{part}": what for part, what in form(str(entry["form"])).parts(entry).items()}


def stored_names(source: Any, names: Iterable[str]) -> Iterator[str]:
    """`names` with every matrix that has a form replaced by its parts, in order of use."""
    held = forms_of(source)
    for name in names:
        entry = held.get(name) if held else None
        if entry is None:
            yield name
        else:
            yield from parts_of(name, entry)


def bound(name: str, entry: Entry, tensors: Mapping[str, Any]) -> Bound:
    """The matrix `name` over its parts in `tensors`."""
    parts = {part.removeprefix(f"{name}."): tensors[part] for part in parts_of(name, entry)}
    return form(str(entry["form"])).bind(entry, parts)


def assemble(held: Mapping[str, Entry], tensors: dict[str, Any]) -> dict[str, Any]:
    """`tensors` with the parts of every matrix of `held` that are among them replaced by what they make."""
    for name, entry in held.items():
        parts = parts_of(name, entry)
        if not any(part in tensors for part in parts):
            continue
        tensors[name] = bound(name, entry, tensors)
        for part in parts:
            del tensors[part]
    return tensors


def require_whole(source: TensorSource) -> None:
    """Raises DamagedFileError naming the first matrix or part of a form that does not hold."""
    for name, finding in findings(source.tensors, forms_of(source)):
        raise DamagedFileError(source.path, finding, field=name)


def check_forms(source: TensorSource, matrices: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the forms of `source` with `matrices`, name -> shape of those that may have one.

    Raises DamagedFileError as `require_whole` does, UserError for a matrix that cannot have a form and for
    one of another shape.
    """
    require_whole(source)
    held = forms_of(source)
    for name, entry in held.items():
        if name not in matrices:
            raise UserError(
                f"{source.path}: {name} is stored as {str(entry['form'])[:40]}, which only matrices inside "
                "blocks can be.",
                field=name,
                given=str(entry["form"]),
            )
        if tuple(entry["shape"]) != tuple(matrices[name]):
            raise UserError(
                f"{source.path}: {name} stands for a matrix {list(entry['shape'])} where the config needs "
                f"{list(matrices[name])}.",
                field=name,
                given=list(entry["shape"]),
                nearest=list(matrices[name]),
            )


def check_activations(source: Any, activations: str) -> None:
    """Raises UserError where a form of `source` is not defined for the type `activations` of a plan."""
    for name, entry in forms_of(source).items():
        kind = str(entry["form"])
        allowed: tuple[str, ...] | None = getattr(form(kind), "ACTIVATIONS", None)
        if allowed is not None and activations not in allowed:
            raise UserError(
                f"{name} is stored as {kind}, which takes {' or '.join(allowed)} activations, not "
                f"{activations}; use {allowed[0]}.",
                field="activations",
                given=activations,
                nearest=allowed[0],
            )


def findings(tensors: Mapping[str, Any], held: Mapping[str, Entry]) -> Iterator[tuple[str, str]]:
    """(tensor or matrix, what is wrong) of every form in `held` whose parts lie in `tensors`."""
    inside: dict[str, list[str]] = {}
    for tensor in tensors:
        inside.setdefault(tensor.rpartition(".")[0], []).append(tensor)
    for name, entry in held.items():
        try:
            parts = parts_of(name, entry)
        except ValueError as error:
            yield name, f"the form of {name}: {error}"
            continue
        kind = entry["form"]
        for part, what in parts.items():
            found = tensors.get(part)
            if found is None:
                near = nearest_name(part, tensors)
                hint = f" (the nearest is {near})" if near else ""
                yield part, f"the tensor {part}, which {name} as {kind} needs, is missing{hint}"
            elif tuple(found.shape) != what.shape:
                said = f"the shape {list(found.shape)} where {name} as {kind} needs {list(what.shape)}"
                yield part, f"the tensor {part} has {said}"
            elif found.kind not in what.kinds:
                said = f"stored as {found.kind} where {name} as {kind} needs {' or '.join(what.kinds)}"
                yield part, f"the tensor {part} is {said}"
        for other in inside.get(name, ()):
            if other not in parts:
                named = ", ".join(part.removeprefix(f"{name}.") for part in parts)
                yield other, f"the tensor {other} is no part of {name} as {kind} (its parts are {named})"


def chain(entry: Entry, linear: Linear) -> tuple[Linear, ...]:
    """The matrix `linear` as several, one after the other. Raises UserError for a form that is no chain."""
    name = str(entry["form"])
    parts = getattr(form(name), "chain", None)
    if parts is None:
        raise UserError(
            f"{linear.weight} is stored as {name}, which is no chain of matrices; export to safetensors, "
            "which makes one matrix of it.",
            field="to",
            given=name,
            nearest="safetensors",
        )
    found: tuple[Linear, ...] = parts(entry, linear)
    return found


def pack_findings(path: str | os.PathLike[str]) -> list[Finding]:
    """What does not hold of the forms of the pack at `path`, whose files do."""
    pack = Pack.open(path)
    return [Finding(RECORD_NAME, what) for _, what in findings(pack.tensors, pack.forms)]


def whole(entry: Entry, field: str, least: int, most: int) -> int:
    """The whole number `field` of `entry`. Raises ValueError outside `least` to `most`."""
    value = entry.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{field} is {str(value)[:40]}, not a whole number from {least} to {most}")
    return value
