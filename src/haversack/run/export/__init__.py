"""The way out: a pack or a checkpoint in another program's format, one file here a format.

A format's file has `LAYOUT` (folder or file), `NAMES` (the files it writes, `*` for any part of a name),
`WEIGHTS` (number types it can be asked for, the first by default), `planned(model, weights)` and
`write(model, goal, weights, bar)`, which may return notes: what of the model is not as it was; `ACTIVATIONS`
where it says how products are computed. There is nothing to register.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

from haversack.core._files import (
    explain_write_errors,
    partial_path,
    put_in_place,
    remove,
    remove_stale_partials,
)
from haversack.core._files import flush_folder as _flush
from haversack.core.errors import UserError, not_allowed, unknown_name
from haversack.core.memory import MemoryPlan
from haversack.core.pack import Pack
from haversack.core.progress import progress
from haversack.models._hub_write import BESIDE
from haversack.run._source import Model


@dataclass(frozen=True)
class Exported:
    """What was written: its `path`, the `files` in it by size in bytes, the number type of the weights, the
    memory that was planned, and in `notes` what is not as it was."""

    to: str
    path: Path
    files: Mapping[str, int]
    weights: str
    seconds: float
    memory: MemoryPlan
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


def formats() -> tuple[str, ...]:
    """The formats there are: every file here that is not machinery."""
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py")))


def export(
    model: Model,
    to: str,
    goal: Path,
    *,
    weights: str | None = None,
    activations: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write `model` in the format `to` at `goal`, whole or not at all.

    `weights`: a number type out of the format's WEIGHTS; `activations`: out of its ACTIVATIONS (default: the
    pack's plan). A pack is held against its checksums first. Raises
    UserError for an unknown format or type, a goal that is taken (with `overwrite`: by something that no
    export wrote), a layer the format has no form for, a full disk; DamagedFileError for a damaged pack.
    """
    if to not in formats():
        raise unknown_name("format", to, formats(), field="to")
    format: Any = import_module(f"{__name__}.{to}")
    weights = format.WEIGHTS[0] if weights is None else weights
    if weights not in format.WEIGHTS:
        raise not_allowed("weights", weights, format.WEIGHTS)
    if activations is not None:
        allowed = getattr(format, "ACTIVATIONS", ())
        if not allowed:
            raise UserError(
                f"{to} says nothing of activations; leave --activations out.",
                field="activations",
                given=activations,
            )
        if activations not in allowed:
            raise not_allowed("activations", activations, allowed)
        model = replace(model, activations=activations)
    if goal.exists() and model.path.exists() and goal.samefile(model.path):
        raise UserError(f"{goal} is the model itself; choose another -o.", field="output", given=str(goal))
    _check_goal(goal, format, overwrite)
    begun = time.monotonic()
    if isinstance(model.source, Pack):
        model.source.verify_once()
    memory: MemoryPlan = format.planned(model, weights)
    with explain_write_errors(goal):
        remove_stale_partials(goal)
        partial = partial_path(goal)
        try:
            if format.LAYOUT == "folder":
                partial.mkdir()
            with progress(f"writing {goal.name}", total=len(model.architecture.tensors())) as bar:
                notes = format.write(model, partial, weights, bar) or ()
            if format.LAYOUT == "folder":
                _carry(model, partial)
                _flush(partial)
            put_in_place(partial, goal)
        except BaseException:
            remove(partial)
            raise
    found = sorted(goal.iterdir()) if goal.is_dir() else [goal]
    files = {path.name: path.stat().st_size for path in found}
    return Exported(to, goal, files, weights, time.monotonic() - begun, memory, notes)


def _check_goal(goal: Path, format: Any, overwrite: bool) -> None:
    """Raises UserError when `goal` cannot be written, or holds what an export must not replace."""
    if not goal.parent.is_dir():
        raise UserError(
            f"{goal} cannot be written: the folder {goal.parent} does not exist.",
            field="output",
            given=str(goal),
        )
    if not goal.exists() and not goal.is_symlink():
        return
    if goal.is_dir() and not goal.is_symlink() and format.LAYOUT == "folder":
        written = ("config.json", "tokenizer.json", *BESIDE, *format.NAMES)
        others = [path.name for path in goal.iterdir() if not any(fnmatch(path.name, one) for one in written)]
        if not others and (overwrite or not any(goal.iterdir())):
            return
        why = f"and holds {sorted(others)[0]}, which no export wrote" if others else ""
    else:
        if overwrite and goal.is_file() and format.LAYOUT == "file":
            return
        why = "" if goal.is_file() == (format.LAYOUT == "file") else f"and is no {format.LAYOUT}"
    advice = "choose another -o" if why else "choose another -o or add --overwrite"
    raise UserError(
        f"{goal} is there already{f' {why}' if why else ''}; {advice}.", field="output", given=str(goal)
    )


def _carry(model: Model, goal: Path) -> None:
    """Tokenizer, templates and licence beside the weights; a tokenizer of older files is made."""
    import shutil

    from haversack.models._gguf import GgufModel
    from haversack.models.tokenizers import can_be_made, tokenizer_json

    if isinstance(model.source, GgufModel):
        for name, data in model.source.texts().items():
            (goal / name).write_bytes(data)
        return
    for name in BESIDE:
        if (model.path / name).is_file():
            shutil.copyfile(model.path / name, goal / name)
    if (model.path / "tokenizer.json").is_file() or can_be_made(model.path):
        (goal / "tokenizer.json").write_bytes(tokenizer_json(model.path))
