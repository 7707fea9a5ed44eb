"""The formats of an export: LeRobot v3.0 is written, every other one is converted from it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from haversack.collect._bucket import SCHEME, Bucket
from haversack.collect.export import Exported, note_export, note_of
from haversack.collect.export import export as write_v3
from haversack.collect.lerobot_reader import version_of
from haversack.core._files import partial_path, remove
from haversack.core.errors import UserError, not_allowed

SYSTEM = 1
FORMATS = ("lerobot-v3", "lerobot-v2.1", "hdf5", "mcap")


def convert(source: Path, out: Path | str, form: str) -> Exported:
    """Convert a LeRobot set to another format, in a folder or below `s3://BUCKET/PREFIX`. Raises UserError
    where that cannot be."""
    if form not in FORMATS:
        raise not_allowed("format", form, FORMATS)
    if str(out).startswith(SCHEME):
        bucket = Bucket.open(str(out))
        _must_be_free(bucket)
        with tempfile.TemporaryDirectory() as folder:
            done = convert(source, Path(folder, "set"), form)
            _send(bucket, Path(folder, "set"))
        done.path = bucket.url
        return done
    out = Path(out)
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
    out: Path | str,
    form: str,
    *,
    fps: int | None = None,
    task: str | None = None,
    hours: float | None = None,
) -> Exported:
    """Export a store in a format, to a folder or below `s3://BUCKET/PREFIX`. The store notes the place
    whatever the format, so that `forget` finds it."""
    if form not in FORMATS:
        raise not_allowed("format", form, FORMATS)
    if str(out).startswith(SCHEME):
        return _to_bucket(root, Bucket.open(str(out)), form, fps=fps, task=task, hours=hours)
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists already; choose another --out.", field="out", given=str(out))
    if form == "lerobot-v3":
        return write_v3(root, out, fps=fps, task=task, hours=hours)
    between = partial_path(out)
    try:
        done = write_v3(root, between, fps=fps, task=task, hours=hours)
        note_export(root, str(out.resolve()), noted(root, between))
        convert(between, out, form)
    finally:
        remove(between)
        note_of(root, str(between.resolve())).unlink(missing_ok=True)
    done.path = str(out)
    return done


def noted(root: Path, out: Path) -> list[str]:
    """The clips of an export that was just written."""
    record = json.loads(note_of(root, str(out.resolve())).read_text(encoding="utf-8"))
    return list(record["clips"])


def _to_bucket(
    root: Path, bucket: Bucket, form: str, *, fps: int | None, task: str | None, hours: float | None
) -> Exported:
    """Write the set beside the store's files, then send it. The note comes before the first object and says
    when all are there: what a killed run left is taken away by the next, which begins anew."""
    note = note_of(root, bucket.url)
    begun = note.is_file() and not json.loads(note.read_text(encoding="utf-8")).get("whole", True)
    if not begun:
        _must_be_free(bucket)
    between = partial_path(root / "exports" / form)
    try:
        done = write(root, between, form, fps=fps, task=task, hours=hours)
        clips = noted(root, between)
        note_export(root, bucket.url, clips, whole=False)
        bucket.remove("")
        _send(bucket, between)
        note_export(root, bucket.url, clips)
    finally:
        remove(between)
        note_of(root, str(between.resolve())).unlink(missing_ok=True)
    done.path = bucket.url
    return done


def _must_be_free(bucket: Bucket) -> None:
    if next(bucket.keys(), None) is not None:
        raise UserError(
            f"{bucket.url} has objects already; choose another --out.", field="out", given=bucket.url
        )


def _send(bucket: Bucket, folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            bucket.put(path.relative_to(folder).as_posix(), path)
