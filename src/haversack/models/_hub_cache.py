"""The hub's cache on disk, and one file fetched into it: resumed, held against its hash, then given its name.

A download goes to `HASH.haversack-partial` beside the blobs, under a lock; a killed one leaves it there and
the next goes on from its end. Nothing has a blob's name before its hash is checked.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from haversack import __version__
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.progress import Progress

COMMIT = re.compile(r"[0-9a-f]{40}")
_CHUNK = 1 << 20


def cache_root() -> Path:
    """Where the hub's library keeps what it fetched, by the same variables; found without importing it."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if named:
        return Path(os.path.expandvars(named)).expanduser()
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")  # noqa: PTH118
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def offline() -> bool:
    """Whether the person asked for no network (HF_HUB_OFFLINE)."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class HubFile:
    """One file of a repository: `digest` is its SHA-256 (`large`) or its git blob hash."""

    name: str
    size: int
    digest: str
    large: bool


@dataclass(frozen=True)
class Cache:
    """The hub's cache folder of one repository: `blobs` by hash, `snapshots` by commit, `refs` by name."""

    folder: Path

    @classmethod
    def of(cls, repository: str) -> Cache:
        return cls(cache_root() / f"models--{repository.replace('/', '--')}")

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def commit(self, revision: str) -> str | None:
        """The commit that `revision` meant when it was last fetched."""
        if COMMIT.fullmatch(revision):
            return revision
        path = self.folder / "refs" / revision
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None

    def link(self, commit: str, file: HubFile) -> Path:
        return self.snapshot(commit).joinpath(*file.name.split("/"))


def hub_origin(folder: Path) -> dict[str, str]:
    """`{"hub": owner/name, "revision": commit}` for a folder of the hub's cache, nothing for any other."""
    snapshots, repository = folder.parent, folder.parent.parent.name
    if snapshots.name != "snapshots" or not repository.startswith("models--"):
        return {}
    return {"hub": repository.removeprefix("models--").replace("--", "/", 1), "revision": folder.name}


def need_space(cache: Cache, commit: str, files: Iterable[HubFile], name: str) -> None:
    needed = sum(file.size for file in files if not cache.link(commit, file).exists())
    cache.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache.folder).free
    if needed > free:
        need, have = needed / 2**20, free / 2**20
        raise UserError(
            f"{name} needs {need:.1f} MiB in {cache.folder} and its disk has {have:.1f} MiB free; free some "
            "space or set HF_HOME to another disk.",
            field="model",
            given=name,
        )


def fetch_file(name: str, cache: Cache, commit: str, repository: str, file: HubFile, bar: Progress) -> Path:
    """The file in the snapshot of `commit`: there already, or fetched, checked and linked."""
    goal = cache.link(commit, file)
    blob = cache.folder / "blobs" / file.digest
    if goal.exists() and goal.stat().st_size == file.size:
        bar.advance(file.size)
        return goal
    blob.parent.mkdir(parents=True, exist_ok=True)
    goal.parent.mkdir(parents=True, exist_ok=True)
    with _locked(blob.with_name(f"{file.digest}.haversack-partial")) as part:
        if not (blob.exists() and blob.stat().st_size == file.size):
            _download(repository, commit, file, part, bar)
            _check(name, file, part)
            Path(part.name).replace(blob)
        else:
            bar.advance(file.size)
            Path(part.name).unlink(missing_ok=True)
    goal.unlink(missing_ok=True)
    goal.symlink_to(os.path.relpath(blob, goal.parent))
    return goal


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """The partial file, open at its end for this process alone; another that fetches it is waited for."""
    while True:
        file = path.open("ab+", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                yield file
                return
        finally:
            file.close()  # else: whoever held it gave it another name meanwhile


class _Counted:
    """The partial file as the download writes it: every byte advances the bar."""

    def __init__(self, file: IO[bytes], bar: Progress) -> None:
        self.file, self.bar = file, bar

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view.nbytes:
            view = view[self.file.write(view) :]
        self.bar.advance(len(data))
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _download(repository: str, commit: str, file: HubFile, part: IO[bytes], bar: Progress) -> None:
    """Append what is missing of `file` to `part`."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    have = part.seek(0, os.SEEK_END)
    if have > file.size:
        part.truncate(0)
        have = 0
    bar.advance(have, label=f"fetching {repository}: {file.name}")
    if have < file.size:
        http_get(
            hf_hub_url(repository, file.name, revision=commit),
            _Counted(part, bar),  # type: ignore[arg-type]
            resume_size=have,
            headers=build_hf_headers(library_name="haversack", library_version=__version__),
            expected_size=file.size,
            displayed_filename=file.name,
        )
    os.fsync(part.fileno())


def _check(name: str, file: HubFile, part: IO[bytes]) -> None:
    """Raises DamagedFileError, and removes the file, when its bytes do not have the hub's hash."""
    digest = hashlib.sha256() if file.large else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    part.seek(0)
    while chunk := part.read(_CHUNK):
        digest.update(chunk)
    if digest.hexdigest() != file.digest:
        Path(part.name).unlink(missing_ok=True)
        kind = "SHA-256" if file.large else "git hash"
        raise DamagedFileError(
            f"{name}: {file.name}",
            f"its {kind} is {digest.hexdigest()[:16]}... and the hub says {file.digest[:16]}...",
            field="model",
            advice="What was fetched has been removed; fetch it again.",
        )
