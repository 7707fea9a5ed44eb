"""Apply: a base and a delta in one folder, and the base out of it again, byte for byte.

Papers: none.
What is here: an applied network is a folder with the base's own files in `base/`, the delta pack in `delta/`
and `applied.json` with names and hashes. It opens like any network (train/networks/applied.py): the delta is
laid over the base in memory, so nothing of the base is rewritten, and `remove` gives back what was there.
It runs, is judged and learns further like its base; what it learns then is a delta of its own.
Cost: the base's files, linked where the file system can, and the delta. Limits: the base is a file or a
folder of this machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from haversack.core._files import explain_write_errors, flush_folder, partial_path, put_in_place, remove
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Finding, check_pack
from haversack.models._bundled import model_folder
from haversack.train._delta import apply_delta, read_delta
from haversack.train.networks._open import open_network

RECORD = "applied.json"
VERSION = 1
RECORD_MOST = 1 << 20


@dataclass(frozen=True)
class Applied:
    """What applied.json says: the base's `name` (file or folder), the hash of its files."""

    name: str
    files_sha256: str


def apply(base: str | Path, delta: Path, goal: Path) -> Applied:
    """Write the applied network `goal` from `base` and `delta`, after trying that they fit.

    Raises UserError for a delta of another base, for a `goal` that is taken and for a full disk.
    """
    place = _base_path(base)
    apply_delta(open_network(base), read_delta(delta), str(delta))
    _require_free(goal)
    made = Applied(place.name, files_sha256(place))
    with explain_write_errors(goal):
        partial = partial_path(goal)
        try:
            partial.mkdir()
            _copy(place, partial / "base" / place.name)
            shutil.copytree(delta, partial / "delta")
            record = {"format": VERSION, "base": made.name, "files_sha256": made.files_sha256}
            (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            _flush(partial)
            put_in_place(partial, goal)
        finally:
            remove(partial)
    return made


def take_away(applied: Path, goal: Path) -> Applied:
    """Write the base of the applied network `applied` at `goal`: the bytes that were applied to.

    Raises UserError for a folder that is none, DamagedFileError where its base was altered.
    """
    record = read_applied(applied)
    place = applied / "base" / record.name
    if files_sha256(place) != record.files_sha256:
        raise DamagedFileError(place, f"its bytes are not those that {RECORD} names (SHA-256)")
    _require_free(goal)
    with explain_write_errors(goal):
        partial = partial_path(goal)
        try:
            _copy(place, partial, link=False)
            if partial.is_dir():
                _flush(partial)
            put_in_place(partial, goal)
        finally:
            remove(partial)
    return record


def read_applied(folder: Path) -> Applied:
    """What the applied network `folder` holds. Raises UserError for what is none, DamagedFileError for a
    record or a base that does not hold."""
    path = folder / RECORD
    if not path.is_file():
        raise UserError(
            f"{folder} is no applied network: it has no {RECORD}; haversack train apply writes one.",
            field="model",
            given=str(folder),
        )
    try:
        if path.stat().st_size > RECORD_MOST:
            raise ValueError("too long")
        said = json.loads(path.read_bytes())
        found = Applied(str(said["base"]), str(said["files_sha256"]))
        plain = (
            said["format"] == VERSION and Path(found.name).name == found.name and found.name not in ("", "..")
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFileError(path, "it is no record of an applied network") from error
    if not plain or not (folder / "base" / found.name).exists():
        raise DamagedFileError(path, f"it names a base that is not there ({found.name[:80]})")
    return found


def files_sha256(path: Path) -> str:
    """SHA-256 over the lines "SHA256  NAME" of the file, or of all files in the folder, by name."""
    lines = []
    for file in _files(path):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        lines.append(f"{digest}  {'' if file == path else file.relative_to(path).as_posix()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_applied(folder: Path) -> list[Finding]:
    """Everything wrong with the applied network `folder`; empty when it is whole."""
    record = read_applied(folder)
    found = [
        Finding(f"delta/{finding.file}", finding.what, finding.offset)
        for finding in check_pack(folder / "delta")
    ]
    if files_sha256(folder / "base" / record.name) != record.files_sha256:
        found.append(Finding(f"base/{record.name}", "its bytes were altered (SHA-256)"))
    return found


def _base_path(base: str | Path) -> Path:
    place = Path(base)
    return place if place.exists() else model_folder(str(base))


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    yield from sorted(each for each in path.rglob("*") if each.is_file())


def _copy(place: Path, goal: Path, *, link: bool = True) -> None:
    """Copy a file or a folder; `link` lets both names share their bytes where they can."""
    for file in _files(place):
        to = goal if file == place else goal / file.relative_to(place)
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not link:
                raise OSError
            os.link(file.resolve(), to)
        except OSError:
            shutil.copyfile(file, to)


def _flush(folder: Path) -> None:
    for file in _files(folder):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for each in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        flush_folder(each)


def _require_free(goal: Path) -> None:
    if os.path.lexists(goal):
        raise UserError(
            f"{goal} is there already; choose another -o or remove it.", field="output", given=str(goal)
        )
