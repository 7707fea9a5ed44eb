"""The store of a collection server: clips that arrive in pieces and are whole, or not there.

Paper: AoE (arXiv 2602.23893). The upload protocol is [inferred]: tus-like, resumable, content-addressed.

`clips/DEVICE/SESSION/CLIP_UUID/` are whole bundles; `objects/DEVICE/` holds their files by SHA-256, once for
each device (a file that another device has is not told to be there), unless a bucket of S3 does
(collect/_objects.py); `uploads/` holds what arrives; `stages/` what was made of clips; `collect.sqlite` the
books. A part of a file is as long as what arrived in order. `complete` checks every SHA-256, links the clip's
folder beside its name, gives it its name and enters it in the books together with its first job, in this
order: a kill between any two leaves a state from which the same request goes on. So a clip is queued exactly
once, however often it is sent.

Cost: each byte is written once and read once (for its hash). Limits: one server process for a store; other
processes (workers) share the books.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from haversack.collect._books import Books
from haversack.collect._bucket import BucketError
from haversack.collect._devices import Device, is_forgotten
from haversack.collect._objects import objects_of
from haversack.collect.bundle import BundleError, Manifest, parse_manifest, sha256_of
from haversack.core._asgi import RefusedError

SYSTEM = 1
FIRST_STAGE = ("c1-ingest", "1")
TOUCH_S = 60.0
log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class StoreLimits:
    """`clip_bytes`: of one clip; `open_uploads`: of one device at once; `keep_free_bytes`: of the disk;
    `stale_s`: after so long without a byte an unfinished upload is dropped."""

    clip_bytes: int = 2 << 30
    open_uploads: int = 64
    keep_free_bytes: int = 256 << 20
    stale_s: float = 14 * 86_400.0


@dataclass(frozen=True)
class Begun:
    """An upload: its id, whether it was new, `receiving` or `complete`, and the SHA-256 that are missing."""

    upload: str
    new: bool
    state: str
    missing: tuple[str, ...]


class Store:
    """The store at `root`, made when it is not there."""

    def __init__(self, root: Path, limits: StoreLimits | None = None) -> None:
        self.root = root
        self.limits = limits or StoreLimits()
        for name in ("clips", "objects", "uploads", "stages"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self.books = Books(root, create=True)
        self.objects = objects_of(root)
        self._locks = [threading.Lock() for _ in range(64)]
        self._touched: dict[str, float] = {}

    def clip_path(self, manifest: Manifest) -> Path:
        """The folder of a complete clip, for reading."""
        return self.objects.fetch(manifest)

    def begin(self, device: Device, data: bytes) -> Begun:
        """Open the upload of the clip whose manifest is `data`; the same again is answered again.

        Raises RefusedError: 403 without the consent of this device's contributor, or for another device's
        clip, 400 for a manifest that does not hold, 409 for a known clip with another manifest, 413 beyond a
        limit or the quota, 429 for too many open uploads, 507 for a full disk. Nothing is stored then.
        """
        try:
            manifest = parse_manifest(data)
        except BundleError as error:
            status = {"consent": 403, "size": 413}.get(error.code, 400)
            raise RefusedError(status, error.code, str(error)) from error
        self._agree(device, manifest)
        stored = manifest.encode()
        known = self.books.row("SELECT * FROM clips WHERE uuid = ?", (manifest.clip_uuid,))
        if known is not None:
            if known["device"] != device.id or known["manifest"] != stored:
                raise RefusedError(409, "clip", f"clip {manifest.clip_uuid} is here with another manifest.")
            return Begun(known["upload"], False, known["state"], self._missing(known["state"], manifest))
        self._room(manifest)
        upload, now = secrets.token_hex(16), time.time()
        with _explained(), self.books.change() as change:
            held, open_now = change.execute(
                "SELECT coalesce(sum(bytes), 0), coalesce(sum(CASE WHEN state = 'receiving' THEN 1 ELSE 0 "
                "END), 0) FROM clips "
                "WHERE device = ?",
                (device.id,),
            ).fetchone()
            if held + manifest.nbytes > device.quota_bytes:
                said = f"the quota of this device is {device.quota_bytes} bytes, {held} are used."
                raise RefusedError(413, "quota", said)
            if open_now >= self.limits.open_uploads:
                said = f"{open_now} uploads of this device are open; finish some first."
                raise RefusedError(429, "uploads", said, headers={"Retry-After": "30"})
            inserted = change.execute(
                "INSERT OR IGNORE INTO clips VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'receiving', ?, ?, NULL)",
                (
                    *(manifest.clip_uuid, upload, device.id, manifest.session, device.contributor, stored),
                    *(manifest.nbytes, manifest.n_frames / manifest.fps_nominal, now, now),
                ),
            ).rowcount
            if inserted:
                change.executemany(
                    "INSERT INTO clip_files VALUES (?, ?, ?, ?, ?)",
                    [(manifest.clip_uuid, device.id, f.name, f.sha256, f.bytes) for f in manifest.files],
                )
        if not inserted:  # the same clip came twice at once
            return self.begin(device, data)
        return Begun(upload, True, "receiving", self._missing("receiving", manifest))

    def offset(self, device: Device, upload: str, sha256: str) -> tuple[int, int]:
        """How many bytes of a file are here, and how many it has."""
        manifest, _ = self._upload(device, upload)
        length = _length(manifest, sha256)
        here = _size(self._part(upload, sha256))
        if not here:  # asked of a bucket only before the first byte
            with _explained():
                here = length if self.objects.has(device.id, sha256) else 0
        return here, length

    def append(self, device: Device, upload: str, sha256: str, offset: int, data: bytes) -> int:
        """Add `data` to a file at `offset`; the new offset. Raises RefusedError 409 when that is not where it
        ends, 413 when it would become longer than the manifest says, 507 for a full disk."""
        with self._locks[hash((upload, sha256)) % 64]:
            here, length = self.offset(device, upload, sha256)
            if offset != here:
                said = f"the file is here up to byte {here}, not {offset}."
                raise RefusedError(409, "offset", said, headers={"Upload-Offset": str(here)}, offset=here)
            if offset + len(data) > length:
                raise RefusedError(413, "size", f"the file has {length} bytes and would become longer.")
            part = self._part(upload, sha256)
            with _explained():
                self._room(None, len(data))
                part.parent.mkdir(exist_ok=True)
                descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    _write_all(descriptor, offset, data)
                finally:
                    os.close(descriptor)
            self._touch(upload)
            return offset + len(data)

    def _touch(self, upload: str) -> None:
        """Note that an upload goes on: in the books once a minute, which is often enough for `sweep`."""
        now = time.monotonic()
        if now - self._touched.get(upload, -TOUCH_S) >= TOUCH_S:
            with _explained(), self.books.change() as change:
                change.execute("UPDATE clips SET touched = ? WHERE upload = ?", (time.time(), upload))
            self._touched[upload] = now

    def complete(self, device: Device, upload: str) -> Manifest:
        """Check every file and queue the clip, exactly once. Raises RefusedError 409 with what is missing,
        422 when a file is not what its SHA-256 says (it is dropped, to be sent again)."""
        with self._locks[hash(upload) % 64]:
            manifest, state = self._upload(device, upload)
            if state == "complete":
                return manifest
            for file in manifest.files:
                self._settle(device, upload, file.sha256, file.bytes)
            with _explained():
                self.objects.lay(manifest)
                self._enter(manifest)
            shutil.rmtree(self.root / "uploads" / upload, ignore_errors=True)
            self._touched.pop(upload, None)
            return manifest

    def sweep(self) -> int:
        """Drop unfinished uploads that nobody goes on with; how many."""
        before = time.time() - self.limits.stale_s
        found = self.books.rows(
            "SELECT uuid, upload FROM clips WHERE state = 'receiving' AND touched < ?", (before,)
        )
        for row in found:
            with self.books.change() as change:
                change.execute("DELETE FROM clips WHERE uuid = ? AND state = 'receiving'", (row["uuid"],))
                change.execute("DELETE FROM clip_files WHERE clip = ?", (row["uuid"],))
            shutil.rmtree(self.root / "uploads" / row["upload"], ignore_errors=True)
            self._touched.pop(row["upload"], None)
        return len(found)

    # ---- steps

    def _agree(self, device: Device, manifest: Manifest) -> None:
        if manifest.device.id != device.id:
            raise RefusedError(403, "other-device", f"this token is not that of device {manifest.device.id}.")
        agreed, said = manifest.consent, (device.contributor, device.policy_version)
        if (agreed.contributor_pseudonym, agreed.policy_version) != said:
            raise RefusedError(
                403, "consent", "the clip's consent is not the one this device was enrolled with."
            )
        if agreed.retention_days > device.retention_days:
            raise RefusedError(
                403, "consent", f"consent was given for {device.retention_days} days, not more."
            )
        if is_forgotten(self.books, device.contributor):
            raise RefusedError(403, "consent", "this contributor asked to be forgotten; nothing is taken.")
        if manifest.nbytes > self.limits.clip_bytes:
            said_most = f"a clip may have {self.limits.clip_bytes} bytes and has {manifest.nbytes}."
            raise RefusedError(413, "size", said_most)

    def _room(self, manifest: Manifest | None, more: int = 0) -> None:
        wanted = manifest.nbytes if manifest is not None else more
        free = shutil.disk_usage(self.root).free
        if free - wanted < self.limits.keep_free_bytes:
            raise RefusedError(507, "disk-full", "the server's disk is full.", headers={"Retry-After": "300"})

    def _missing(self, state: str, manifest: Manifest) -> tuple[str, ...]:
        if state == "complete":
            return ()
        digests = dict.fromkeys(file.sha256 for file in manifest.files)
        with _explained():
            return tuple(each for each in digests if not self.objects.has(manifest.device.id, each))

    def _upload(self, device: Device, upload: str) -> tuple[Manifest, str]:
        row = self.books.row("SELECT * FROM clips WHERE upload = ?", (upload,))
        if row is None or row["device"] != device.id:
            raise RefusedError(404, "upload", "there is no such upload of this device.")
        return parse_manifest(row["manifest"]), row["state"]

    def _settle(self, device: Device, upload: str, sha256: str, length: int) -> None:
        """Turn a whole part into an object."""
        part = self._part(upload, sha256)
        with _explained():
            if self.objects.has(device.id, sha256):
                return
        if _size(part) != length:
            raise RefusedError(
                409, "missing", f"{length - _size(part)} bytes of a file are missing.", sha256=sha256
            )
        if sha256_of(part) != sha256:
            part.unlink()
            said = "a file is not what its SHA-256 says and was dropped; send it again."
            raise RefusedError(422, "hash", said, sha256=sha256)
        with _explained():
            self.objects.put(device.id, sha256, part)

    def _enter(self, manifest: Manifest) -> None:
        now = time.time()
        with self.books.change() as change:
            change.execute(
                "UPDATE clips SET state = 'complete', completed = ?, touched = ? WHERE uuid = ?",
                (now, now, manifest.clip_uuid),
            )
            change.execute(
                "INSERT OR IGNORE INTO jobs (clip, stage, version, state, in_bytes) "
                "VALUES (?, ?, ?, 'queued', ?)",
                (manifest.clip_uuid, *FIRST_STAGE, manifest.nbytes),
            )

    def _part(self, upload: str, sha256: str) -> Path:
        return self.root / "uploads" / upload / f"{sha256}.part"


def _length(manifest: Manifest, sha256: str) -> int:
    for file in manifest.files:
        if file.sha256 == sha256:
            return file.bytes
    raise RefusedError(404, "upload", "the clip's manifest has no file with this SHA-256.")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _write_all(descriptor: int, offset: int, data: bytes) -> None:
    done = 0
    try:
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], offset + done)
    except OSError:
        os.ftruncate(descriptor, offset)
        raise


class _explained:  # noqa: N801 - reads as a word
    """A full disk becomes RefusedError 507, whoever notices it; a bucket that cannot be used 503."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        full = isinstance(error, OSError) and error.errno in _FULL
        full = full or (isinstance(error, sqlite3.OperationalError) and "full" in str(error))
        if full:
            raise RefusedError(
                507, "disk-full", "the server's disk is full.", headers={"Retry-After": "300"}
            ) from error
        if isinstance(error, BucketError):
            log.error("%s", error)
            said = "the server cannot reach its files; come back later."
            raise RefusedError(503, "files", said, headers={"Retry-After": "30"}) from error
