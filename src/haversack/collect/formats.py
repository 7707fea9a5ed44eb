"""The formats of an export: LeRobot v3.0 is written, every other one is converted from it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from haversack.collect.export import Exported
from haversack.collect.export import export as write_v3
from haversack.collect.lerobot_reader import version_of
from haversack.core._files import partial_path, remove, write_atomically
from haversack.core.errors import UserError, not_allowed

SYSTEM = 1
FORMATS = ("lerobot-v3", "lerobot-v2.1", "hdf5", "mcap")


def convert(source: Path, out: Path, form: str) -> Exported:
    """Convert a LeRobot set to another format. Raises UserError where that cannot be."""
    if form not in FORMATS:
        raise not_allowed("format", form, FORMATS)
    version = version_of(source)
    if form == "lerobot-v3":
        if version != "v2.1":
            raise UserError(
                f"{source} is of version {version}; v2.1 becomes lerobot-v3.", field="format", given=form
            )
        from haversack.collect.lerobot_v21 import to_v3

        to_v3(source, out)
    elif form == "lerobot-v2.1":
        from haversack.collect.lerobot_v21 import to_v21

        to_v21(source, out)
    elif form == "hdf5":
        from haversack.collect.hdf5_export import to_hdf5

        to_hdf5(source, out)
    else:
        from haversack.collect.mcap_export import to_mcap

        to_mcap(source, out)
    info = json.loads((source / "meta" / "info.json").read_text(encoding="utf-8"))
    splits = {}
    for name, span in info["splits"].items():
        begin, _, end = str(span).partition(":")
        splits[name] = int(end) - int(begin)
    return Exported(str(out), int(info["total_episodes"]), int(info["total_frames"]), splits)


def write(
    root: Path,
    out: Path,
    form: str,
    *,
    fps: int | None = None,
    task: str | None = None,
    hours: float | None = None,
) -> Exported:
    """Export a store in a format. The store notes the folder whatever the format, so that `forget` finds
    it."""
    if form not in FORMATS:
        raise not_allowed("format", form, FORMATS)
    if out.exists():
        raise UserError(f"{out} exists already; choose another --out.", field="out", given=str(out))
    if form == "lerobot-v3":
        return write_v3(root, out, fps=fps, task=task, hours=hours)
    between = partial_path(out)
    note = _note(root, between)
    try:
        done = write_v3(root, between, fps=fps, task=task, hours=hours)
        record = json.loads(note.read_text(encoding="utf-8"))
        write_atomically(_note(root, out), json.dumps(record | {"path": str(out.resolve())}).encode())
        convert(between, out, form)
    finally:
        remove(between)
        note.unlink(missing_ok=True)
    done.path = str(out)
    return done


def _note(root: Path, out: Path) -> Path:
    return root / "exports" / f"{hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]}.json"
