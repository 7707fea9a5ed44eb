"""Forgets a contributor: every clip, file, result, device and row of theirs, with the proof that all is gone.

Paper: AoE (arXiv 2602.23893); deletion and tombstones are [inferred].

First a tombstone is set (a keyed hash of the pseudonym), so that nothing new of them is taken. Then files go,
then exports that hold their clips (they are made again without them), then the rows, and the books are
written anew, so that deleted rows are gone from the file itself. A kill on the way loses nothing: the same
command goes on, because rows go last.

The proof reads every file that is left in the store, byte by byte: none contains the pseudonym, a clip's or
a device's id, none has the hash of a file that was removed. Of files in a bucket the names are read, which
hold the device and the hash. Limits: what left the store before (a copy of an export on another disk) cannot
be reached; `audit.jsonl` says which exports held the contributor.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from haversack.collect._books import NAME, Books
from haversack.collect._bucket import SCHEME, Bucket
from haversack.collect._devices import mark_of
from haversack.collect._objects import objects_of
from haversack.collect.bundle import parse_manifest
from haversack.core.errors import HaversackError, UserError

SYSTEM = 1
AUDIT = "audit.jsonl"
DAY_NS = 86_400 * 1_000_000_000
EARLIEST_NS = 1_577_836_800 * 1_000_000_000
"""2020: no clip is older."""
_WORD = rb"[A-Za-z0-9_-]"


@dataclass
class Forgotten:
    """What was removed, and the proof: files and bytes that were searched, and `traces` found (none)."""

    mark: str
    clips: int = 0
    devices: int = 0
    files: int = 0
    nbytes: int = 0
    exports: list[str] = field(default_factory=list)
    searched_files: int = 0
    searched_bytes: int = 0
    traces: list[str] = field(default_factory=list)


class TracesLeftError(HaversackError):
    """Something of a forgotten contributor is still in the store."""


def forget(root: Path, contributor: str) -> Forgotten:
    """Remove every trace of `contributor` from the store and prove it. Raises UserError for somebody whom
    the store does not know, TracesLeftError where the proof fails."""
    books = Books(root)
    mark = mark_of(books, contributor)
    known = books.row(
        "SELECT 1 FROM clips WHERE contributor = ? UNION SELECT 1 FROM devices WHERE contributor = ? "
        "UNION SELECT 1 FROM invites WHERE contributor = ?",
        (contributor,) * 3,
    )
    if known is None:
        raise UserError(
            f"the store knows no contributor {contributor!r}; nothing was removed.",
            field="contributor",
            given=contributor,
        )
    done = Forgotten(mark)
    with books.change() as change:
        change.execute("INSERT OR IGNORE INTO tombstones VALUES (?, ?)", (mark, time.time()))
        change.execute("UPDATE devices SET expires = 0 WHERE contributor = ?", (contributor,))
    clips = books.rows(
        "SELECT uuid, upload, device, session FROM clips WHERE contributor = ?", (contributor,)
    )
    devices = [
        str(row["id"]) for row in books.rows("SELECT id FROM devices WHERE contributor = ?", (contributor,))
    ]
    hashes = _remove_files(root, books, clips, done)
    _remove_exports(root, {str(row["uuid"]) for row in clips}, done)
    _remove_rows(books, clips)
    with books.change() as change:
        for table in ("devices", "invites"):
            change.execute(f"DELETE FROM {table} WHERE contributor = ?", (contributor,))
    done.clips, done.devices = len(clips), len(devices)
    books.compact()
    others = [str(row["contributor"]) for row in books.rows("SELECT DISTINCT contributor FROM devices")]
    _note(root, done, "forget")
    ids = [*(str(row["uuid"]) for row in clips), *devices]
    prove(root, contributor, ids, hashes, done, others)
    within = any(contributor in other for other in others)
    done.traces += books.holding(ids if within else [*ids, contributor])
    books.close()
    if done.traces:
        raise TracesLeftError(
            f"{len(done.traces)} traces of the contributor are left, the first in {done.traces[0]}; "
            "run the command again, and report it if that does not help."
        )
    return done


def expire(root: Path, books: Books, now_ns: int) -> int:
    """Remove clips whose time is over: taken longer ago than their consent allows them to be kept, with their
    results and the exports that hold them; how many. A device's clock that cannot be right does not count:
    then the time runs from the clip's arrival."""
    over = []
    for row in books.rows("SELECT * FROM clips WHERE state = 'complete'"):
        manifest = parse_manifest(row["manifest"])
        taken, arrived = manifest.t0_wall_ns, round(row["completed"] * 1e9)
        begin = taken if EARLIEST_NS < taken <= arrived else arrived
        if begin + manifest.consent.retention_days * DAY_NS < now_ns:
            over.append(row)
    if over:
        done = Forgotten("expired", clips=len(over))
        _remove_files(root, books, over, done)
        _remove_exports(root, {str(row["uuid"]) for row in over}, done)
        _remove_rows(books, over)
        _note(root, done, "expire")
    return len(over)


def _remove_rows(books: Books, clips: list[Any]) -> None:
    with books.change() as change:
        for row in clips:
            change.execute("DELETE FROM jobs WHERE clip = ?", (row["uuid"],))
            change.execute("DELETE FROM clip_files WHERE clip = ?", (row["uuid"],))
            change.execute("DELETE FROM clips WHERE uuid = ?", (row["uuid"],))


def _remove_files(root: Path, books: Books, clips: list[Any], done: Forgotten) -> set[str]:
    """Remove clips, parts, results and objects; the hashes of files that no other clip has."""
    gone = {str(row["uuid"]) for row in clips}
    for row in clips:
        _remove_tree(root / "clips" / row["device"] / row["session"] / row["uuid"], done)
        _remove_tree(root / "uploads" / row["upload"], done)
        _remove_tree(root / "stages" / row["uuid"], done)
        for folder in (root / "clips" / row["device"] / row["session"], root / "clips" / row["device"]):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    hashes, objects = set(), objects_of(root)
    files = {
        (str(file["device"]), str(file["sha256"]))
        for row in clips
        for file in books.rows("SELECT device, sha256 FROM clip_files WHERE clip = ?", (row["uuid"],))
    }
    for device, sha256 in sorted(files):
        holders = books.rows("SELECT clip, device FROM clip_files WHERE sha256 = ?", (sha256,))
        others = [holder for holder in holders if holder["clip"] not in gone]
        if not others:
            hashes.add(sha256)
        if not any(other["device"] == device for other in others):
            nbytes = objects.remove(device, sha256)
            done.nbytes += nbytes or 0
            done.files += nbytes is not None
    for device in {device for device, _ in files}:
        objects.prune(device)
    return hashes


def _remove_tree(path: Path, done: Forgotten) -> None:
    if not path.is_dir():
        return
    done.files += sum(each.is_file() for each in path.rglob("*"))
    aside = path.with_name(f"{path.name}.gone")
    path.rename(aside)
    shutil.rmtree(aside)


def _remove_exports(root: Path, clips: set[str], done: Forgotten) -> None:
    """Exports note their clips in `exports/NAME.json`; those with a forgotten one are removed."""
    for note in sorted((root / "exports").glob("*.json")):
        record = json.loads(note.read_text(encoding="utf-8"))
        if clips & set(record["clips"]):
            if record["path"].startswith(SCHEME):
                Bucket.open(record["path"]).remove("")
            else:
                shutil.rmtree(record["path"], ignore_errors=True)
            note.unlink()
            done.exports.append(record["path"])


def prove(
    root: Path,
    contributor: str,
    ids: Iterable[str],
    hashes: set[str],
    done: Forgotten,
    others: Iterable[str] = (),
) -> None:
    """Read every file under `root` and enter what still names the contributor, or is a removed file.

    The pseudonym counts as a whole word; in the books, whose fields stand side by side, as any bytes, unless
    another contributor's name contains it.
    """
    words = [re.escape(each.encode()) for each in ids]
    name = re.escape(contributor.encode())
    word = re.compile(b"|".join([*words, rb"(?<!%b)%b(?!%b)" % (_WORD, name, _WORD)]))
    within = any(contributor in other for other in others)
    anywhere = word if within else re.compile(b"|".join([*words, name]))
    for path in sorted(root.rglob("*")):
        place = str(path.relative_to(root))
        if word.search(place.encode()):
            done.traces.append(place)
        if not path.is_file() or path.is_symlink():
            continue
        done.searched_files += 1
        size = path.stat().st_size
        done.searched_bytes += size
        if not size:
            continue
        pattern = anywhere if path.name.startswith(NAME) else word
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if pattern.search(data) or hashlib.sha256(data).hexdigest() in hashes:
                done.traces.append(place)
    for place in objects_of(root).names():  # a file's name is its hash, and was checked before it went there
        done.searched_files += 1
        if word.search(place.encode()) or place.rpartition("/")[2] in hashes:
            done.traces.append(place)


def _note(root: Path, done: Forgotten, action: str) -> None:
    """One line of the audit log, which is only added to."""
    line = {
        **{"time": time.time(), "action": action, "who": done.mark},
        **{"clips": done.clips, "files": done.files, "exports": len(done.exports)},
    }
    with (root / AUDIT).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
