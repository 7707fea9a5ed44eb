"""The files of complete clips: in the store's folder, or in a bucket of S3 that `files.toml` names.

A file is known by its device and its SHA-256, so it is kept once and a device never learns what another has
sent. In the folder, a clip's files are hard links to its objects. In a bucket they are objects alone; a clip
that is worked on is fetched into the store's folder, whole or not at all, and the clips that were used
longest ago go when more than `cache_mib` lie there. Uploads arrive in the folder either way, where they can
grow.
"""

from __future__ import annotations

import os
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from haversack.collect._books import Books
from haversack.collect._bucket import Bucket
from haversack.collect.bundle import MANIFEST, Manifest, parse_manifest, sha256_of
from haversack.core._files import (
    flush_folder,
    partial_path,
    put_in_place,
    remove,
    remove_stale_partials,
    write_atomically,
)
from haversack.core.errors import DamagedFileError, UserError

PLACE = "files.toml"
CACHE_MIB = 4096
SPARED_S = 600.0
"""A fetched clip that was used so short a time ago stays, whoever uses it."""


class Objects(Protocol):
    """Where whole files of clips are."""

    def has(self, device: str, sha256: str) -> bool:
        """Whether a file is there."""

    def put(self, device: str, sha256: str, part: Path) -> None:
        """Take a whole and checked file; `part` is gone afterwards."""

    def lay(self, manifest: Manifest) -> None:
        """Let the clip be whole in the store's folder, where the files are there anyway."""

    def fetch(self, manifest: Manifest) -> Path:
        """The folder of a complete clip, for reading."""

    def remove(self, device: str, sha256: str) -> int | None:
        """Remove a file; its bytes, or None where it is not there."""

    def prune(self, device: str) -> None:
        """Drop what is left of a device that has no file."""

    def names(self) -> Iterator[str]:
        """Of files that are elsewhere: DEVICE/XX/SHA256."""


def objects_of(root: Path) -> Objects:
    """The files of the store at `root`. Raises UserError for a place that cannot be used."""
    place = root / PLACE
    if not place.is_file():
        return Folder(root)
    try:
        record = tomllib.loads(place.read_text(encoding="utf-8"))
        url, cache_mib = record.pop("url"), record.pop("cache_mib", CACHE_MIB)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError) as error:
        raise DamagedFileError(place, f"it is no TOML with a url ({error})") from error
    if record or not isinstance(url, str) or type(cache_mib) is not int or cache_mib < 0:
        raise DamagedFileError(place, "it holds more than url (a text) and cache_mib (0 or more)")
    return InBucket(root, Bucket.open(url), cache_mib << 20)


def name_bucket(root: Path, url: str, cache_mib: int = CACHE_MIB) -> None:
    """Let a store that is not there yet keep its files in a bucket. Raises UserError for a store with files,
    for a URL that is none and for a bucket that cannot be used."""
    bucket, place = Bucket.open(url), root / PLACE
    if place.is_file():
        said = tomllib.loads(place.read_text(encoding="utf-8"))
        other = said.get("url") != bucket.url
    else:
        other = (root / "objects").is_dir() and any((root / "objects").iterdir())
    if other:
        raise UserError(
            f"{root} has its files elsewhere already; give --files for a new store only.",
            field="files",
            given=url,
        )
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(place, f'url = "{bucket.url}"\ncache_mib = {cache_mib}\n'.encode())


def fetched(root: Path) -> Iterator[Path]:
    """The folders of all complete clips of a store, each brought when it is asked for."""
    books, objects = Books(root), objects_of(root)
    rows = books.rows("SELECT manifest FROM clips WHERE state = 'complete' ORDER BY uuid")
    books.close()
    for row in rows:
        yield objects.fetch(parse_manifest(row["manifest"]))


class Folder:
    """Files below `objects/`, clips of hard links to them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, device: str, sha256: str) -> Path:
        """Where a file lies."""
        return self.root / "objects" / device / sha256[:2] / sha256

    def has(self, device: str, sha256: str) -> bool:
        return self.path(device, sha256).exists()

    def put(self, device: str, sha256: str, part: Path) -> None:
        goal = self.path(device, sha256)
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        goal.parent.mkdir(parents=True, exist_ok=True)
        put_in_place(part, goal)

    def lay(self, manifest: Manifest) -> None:
        def link(sha256: str, goal: Path) -> None:
            os.link(self.path(manifest.device.id, sha256), goal)

        _laid(self.root, manifest, link)

    def fetch(self, manifest: Manifest) -> Path:
        return self.root / "clips" / manifest.folder

    def remove(self, device: str, sha256: str) -> int | None:
        path = self.path(device, sha256)
        if not path.exists():
            return None
        nbytes = path.stat().st_size
        path.unlink()
        return nbytes

    def prune(self, device: str) -> None:
        folder = self.root / "objects" / device
        if folder.is_dir() and not any(path.is_file() for path in folder.rglob("*")):
            shutil.rmtree(folder)

    def names(self) -> Iterator[str]:
        return iter(())  # all are below the root, where they are read


class InBucket:
    """Files below `objects/` of a bucket; clips that are worked on below `clips/` of the store's folder."""

    def __init__(self, root: Path, bucket: Bucket, cache_bytes: int) -> None:
        self.root, self.bucket, self.cache_bytes = root, bucket, cache_bytes

    @staticmethod
    def key(device: str, sha256: str) -> str:
        """Of a file."""
        return f"objects/{device}/{sha256[:2]}/{sha256}"

    def has(self, device: str, sha256: str) -> bool:
        return self.bucket.size(self.key(device, sha256)) is not None

    def put(self, device: str, sha256: str, part: Path) -> None:
        self.bucket.put(self.key(device, sha256), part)
        part.unlink()

    def lay(self, manifest: Manifest) -> None:
        """Nothing: clips are fetched when they are worked on."""

    def fetch(self, manifest: Manifest) -> Path:
        goal = self.root / "clips" / manifest.folder

        def load(sha256: str, path: Path) -> None:
            self.bucket.get(self.key(manifest.device.id, sha256), path)
            if sha256_of(path) != sha256:
                raise DamagedFileError(
                    self.bucket.url + self.key(manifest.device.id, sha256), "its SHA-256 is another"
                )

        if not goal.exists():
            self._make_room(manifest.nbytes)
            _laid(self.root, manifest, load)
        os.utime(goal)
        return goal

    def _make_room(self, more: int) -> None:
        """Remove the clips that were used longest ago until `more` bytes fit; clips at work stay."""
        found = []
        for path in (self.root / "clips").glob("*/*/*"):
            if (path / MANIFEST).is_file():
                nbytes = sum(file.stat().st_size for file in path.iterdir())
                found.append((path.stat().st_mtime, nbytes, path))
        total = sum(nbytes for _, nbytes, _ in found) + more
        if total <= self.cache_bytes:
            return
        books = Books(self.root)
        leased = {str(row["clip"]) for row in books.rows("SELECT clip FROM jobs WHERE state = 'leased'")}
        books.close()
        for used, nbytes, path in sorted(found):
            if total <= self.cache_bytes or time.time() - used < SPARED_S:
                break
            if path.name not in leased:
                remove(path)
                total -= nbytes

    def remove(self, device: str, sha256: str) -> int | None:
        key = self.key(device, sha256)
        here = self.bucket.size(key)
        nbytes = self.bucket.remove(key)
        return None if here is None and not nbytes else nbytes

    def prune(self, device: str) -> None:
        """Nothing: a bucket has no folders."""

    def names(self) -> Iterator[str]:
        return (key.removeprefix("objects/") for key in self.bucket.keys("objects/"))


def _laid(root: Path, manifest: Manifest, bring: Callable[[str, Path], None]) -> None:
    """Make a clip's folder, whole or not at all: `bring(sha256, path)` for each file, then the manifest."""
    goal = root / "clips" / manifest.folder
    if goal.exists():
        return
    goal.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_partials(goal)
    partial = partial_path(goal)
    partial.mkdir()
    try:
        for file in manifest.files:
            bring(file.sha256, partial / file.name)
        with (partial / MANIFEST).open("wb") as written:
            written.write(manifest.encode())
            written.flush()
            os.fsync(written.fileno())
        flush_folder(partial)
        put_in_place(partial, goal)
    except BaseException:
        remove(partial)
        raise
