"""A pack is the artifact: a folder with pack.json, weights.safetensors, tokenizer and licence. docs/format.md
has the bytes.

`Pack.open` checks every promise (version, record, sizes, offsets, the weights' own header) before a byte of a
tensor is used; `Pack.check` sums every file and lists everything it finds. A pack and a hub folder are both a
`TensorSource`.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import msgspec

from haversack.core._files import write_atomically
from haversack.core._pack_writer import PackWriter
from haversack.core._record import (
    DTYPE_OF_KIND,
    FORMAT,
    PACK_KINDS,
    PIECE,
    RECORD_MOST,
    RECORD_NAME,
    SEALED_NAME,
    STORE_NAME,
    WEIGHTS_NAME,
    FileEntry,
    PackRecord,
    TensorEntry,
    decode_record,
    encode_record,
    nbytes_of,
    pack_schema,
)
from haversack.core._safetensors import map_file, read_header
from haversack.core._verified import forget_verified, is_verified, mark_verified
from haversack.core.errors import DamagedFileError, UserError

__all__ = [
    "FORMAT",
    "PACK_KINDS",
    "FileEntry",
    "Finding",
    "Pack",
    "PackRecord",
    "PackWriter",
    "TensorEntry",
    "TensorSource",
    "check_pack",
    "is_pack",
    "nbytes_of",
    "pack_schema",
]

Bytes = bytes  # inside the classes below, `bytes` is a method


@runtime_checkable
class TensorSource(Protocol):
    """Where tensors come from: a pack or a hub folder."""

    @property
    def path(self) -> Path:
        """The folder."""

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """Every tensor by name, in the order of the file."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tensors."""

    def bytes(self, name: str) -> memoryview:
        """The tensor's bytes as a read-only view of the mapped file. Raises UserError for an unknown name."""


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a pack: the `file` (name inside the pack), `what`, and the byte `offset` where it
    begins."""

    file: str
    what: str
    offset: int | None = None

    def __str__(self) -> str:
        at = "" if self.offset is None else f" (from byte {self.offset})"
        return f"{self.file}: {self.what}{at}"


class Pack:
    """An opened pack; made by `Pack.open`. Tensor data stays on disk until `bytes` maps it."""

    def __init__(self, path: Path, record: PackRecord) -> None:
        self.path = path
        self.record = record
        self.tensors: dict[str, TensorEntry] = {entry.name: entry for entry in record.tensors}
        self._mapped: dict[str, memoryview] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the pack at `path` after checking its record, sizes and offsets (not its data: see
        `verify_once`).

        Raises UserError when there is no pack, DamagedFileError with the first thing that does not hold.
        """
        folder = Path(path)
        record = _read_record(folder)
        for finding in _structure(folder, record):
            raise DamagedFileError(folder / finding.file, finding.what)
        return cls(folder, record)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tensors, in the order of their first tensor."""
        return tuple(self.path / name for name in dict.fromkeys(e.file for e in self.tensors.values()))

    @property
    def sealed(self) -> bool:
        """True when the weights are encrypted: their bytes lie in sealed.store and mean nothing without the
        key.
        """
        return any(entry.file == SEALED_NAME for entry in self.tensors.values())

    @property
    def forms(self) -> Mapping[str, Mapping[str, Any]]:
        """Matrix -> how its parts make it up, for those that are more than one tensor."""
        return self.record.forms

    @property
    def nbytes(self) -> int:
        """Bytes of the pack on storage: its files and its record."""
        return (
            sum(file.size for file in self.record.files.values()) + (self.path / RECORD_NAME).stat().st_size
        )

    def bytes(self, name: str) -> memoryview:
        """The tensor's bytes as a read-only view of the mapped file. Raises UserError for an unknown name and
        for sealed weights.
        """
        entry = self.tensors.get(name)
        if entry is None:
            raise UserError(f"{self.path} holds no tensor {name}.", field="tensor", given=name)
        if entry.file == SEALED_NAME:
            raise UserError(
                f"{self.path} is sealed: only haversack run and serve open it, with --residency sealed and "
                "--key KEYFILE.",
                field="pack",
                given=str(self.path),
                nearest="sealed",
            )
        if entry.file not in self._mapped:
            self._mapped[entry.file] = map_file(self.path / entry.file, self.record.files[entry.file].size)
        return self._mapped[entry.file][entry.offset : entry.offset + entry.nbytes]

    def read_file(self, name: str) -> Bytes:
        """A file beside the weights (tokenizer.json), checked against its checksums.

        Raises UserError when the pack has no such file, DamagedFileError when it was altered.
        """
        entry = self.record.files.get(name)
        if entry is None:
            raise UserError(f"{self.path} holds no file {name}.", field="file", given=name)
        for finding in _sums(self.path, name, entry, keep_cached=True):
            raise DamagedFileError(self.path / name, finding.what)
        return (self.path / name).read_bytes()

    def verify_once(self, *, keep_cached: bool = True, without: Container[str] = ()) -> None:
        """Sum every file that was not summed before on this machine; later calls only compare a marker.

        `keep_cached=False` drops what was read from the page cache (for streamed weights); files of `without`
        are left to those who check what they read of them. Raises DamagedFileError for the first piece that
        was altered.
        """
        for name, entry in self.record.files.items():
            if name in without or is_verified(self.path / name, entry):
                continue
            for finding in _sums(self.path, name, entry, keep_cached=keep_cached):
                forget_verified(self.path / name)
                raise DamagedFileError(self.path / name, str(finding).partition(": ")[2])
            mark_verified(self.path / name, entry)

    def check(self) -> list[Finding]:
        """Everything wrong with the pack, from every file; empty when it is whole. See `check_pack`."""
        return check_pack(self.path)

    def update(self, **changes: Any) -> Pack:
        """Replace `measurements`, `provenance` or `plan` of the record, atomically; returns the pack as it is
        now.

        Raises ValueError for other fields, UserError when the disk is full.
        """
        if not set(changes) <= {"measurements", "provenance", "plan"}:
            raise ValueError(f"a pack's {sorted(changes)} cannot be replaced")
        record = msgspec.structs.replace(self.record, **changes)
        write_atomically(self.path / RECORD_NAME, encode_record(record))
        return Pack.open(self.path)


def is_pack(path: str | os.PathLike[str]) -> bool:
    """True when `path` is a folder with a pack.json; says nothing about its health."""
    return (Path(path) / RECORD_NAME).is_file()


def check_pack(path: str | os.PathLike[str]) -> list[Finding]:
    """Everything wrong with the pack at `path`, all files read to the end; empty when it is whole.

    A file found whole is remembered (see `Pack.verify_once`), one found damaged is forgotten. Raises
    UserError when there is no pack at `path`.
    """
    folder = Path(path)
    try:
        record = _read_record(folder)
    except DamagedFileError as error:
        return [Finding(RECORD_NAME, error.what)]
    found = list(_structure(folder, record))
    absent = {finding.file for finding in found if not (folder / finding.file).is_file()}
    for name, entry in record.files.items():
        if name in absent:
            continue
        damage = list(_sums(folder, name, entry, keep_cached=False))
        found += damage
        if damage:
            forget_verified(folder / name)
        elif not any(finding.file == name for finding in found):
            mark_verified(folder / name, entry)
    return found


def _read_record(folder: Path) -> PackRecord:
    path = folder / RECORD_NAME
    if not path.is_file():
        if not folder.exists():
            raise UserError(f"there is no pack at {folder}.", field="pack", given=str(folder))
        advice = "it is a file" if folder.is_file() else f"it has no {RECORD_NAME}"
        raise UserError(f"{folder} is no pack: {advice}.", field="pack", given=str(folder))
    try:
        with path.open("rb") as file:
            data = file.read(RECORD_MOST + 1)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}.", field="pack", given=str(folder)
        ) from error
    try:
        return decode_record(data)
    except ValueError as error:
        raise DamagedFileError(path, str(error)) from error


def _structure(folder: Path, record: PackRecord) -> Iterator[Finding]:
    """What does not hold without reading tensor data: files, sizes, the weights' header against the
    record."""
    for name, entry in record.files.items():
        try:
            found = (folder / name).lstat()
        except OSError:
            yield Finding(name, "it is missing")
            continue
        if not stat.S_ISREG(found.st_mode):
            yield Finding(name, "it is not a regular file")
        elif found.st_size != entry.size:
            yield Finding(name, f"it has {found.st_size} bytes instead of {entry.size}")
        elif name == WEIGHTS_NAME:
            yield from _weights_header(folder, record)
        elif name == STORE_NAME:
            yield from _store_header(folder, record)


def _weights_header(folder: Path, record: PackRecord) -> Iterator[Finding]:
    try:
        header = read_header(folder / WEIGHTS_NAME)
    except DamagedFileError as error:
        yield Finding(WEIGHTS_NAME, error.what)
        return
    if header.data_start != record.files[WEIGHTS_NAME].start or header.data_start % 4096:
        yield Finding(
            WEIGHTS_NAME, f"its data starts at byte {header.data_start}, not where {RECORD_NAME} says"
        )
    written = {entry.name: entry for entry in header.entries}
    for entry in record.tensors:
        if entry.file != WEIGHTS_NAME:
            continue
        found = written.pop(entry.name, None)
        if found is None:
            yield Finding(WEIGHTS_NAME, f"the tensor {entry.name} is missing")
            continue
        shape = entry.shape if entry.layout == "rows-1" else (entry.nbytes,)
        if (found.dtype, found.shape) != (DTYPE_OF_KIND[entry.kind], shape):
            said = f"{found.dtype} {list(found.shape)}"
            yield Finding(
                WEIGHTS_NAME, f"the tensor {entry.name} is {said} there and another thing in {RECORD_NAME}"
            )
        elif (found.offset, found.nbytes) != (entry.offset, entry.nbytes):
            yield Finding(WEIGHTS_NAME, f"the tensor {entry.name} lies elsewhere than {RECORD_NAME} says")
    for name in written:
        yield Finding(WEIGHTS_NAME, f"the tensor {name} is not in {RECORD_NAME}")


def _store_header(folder: Path, record: PackRecord) -> Iterator[Finding]:
    from haversack.core.expert_store import ExpertStore

    try:
        with ExpertStore.open(folder / STORE_NAME) as store:
            model, records = store.model, store.records
    except DamagedFileError as error:
        yield Finding(STORE_NAME, error.what)
        return
    if model != record.provenance.get("identity"):
        yield Finding(STORE_NAME, f"it holds the experts of another model ({model[:80]})")
        return
    said = {entry.name: entry for entry in record.tensors if entry.file == STORE_NAME}
    for each in records.values():
        for entry in each.entries():
            if said.pop(entry.name, None) != entry:
                yield Finding(STORE_NAME, f"the tensor {entry.name} of {each} is not what {RECORD_NAME} says")
    for name in said:
        yield Finding(STORE_NAME, f"the tensor {name} is missing")


def _sums(folder: Path, name: str, entry: FileEntry, *, keep_cached: bool) -> Iterator[Finding]:
    """Pieces whose checksum does not match; a run of damaged pieces is one finding."""
    try:
        with (folder / name).open("rb", buffering=0) as file:
            if zlib.crc32(_read_exactly(file.fileno(), 0, entry.start)) != entry.head:
                yield Finding(name, "its header was altered", 0)
            damaged = []
            buffer_end = entry.start
            for index, expected in enumerate(entry.pieces):
                at = entry.start + index * PIECE
                piece = _read_exactly(file.fileno(), at, min(PIECE, entry.size - at))
                if zlib.crc32(piece) != expected:
                    damaged.append(index)
                if not keep_cached and hasattr(os, "posix_fadvise") and at + PIECE - buffer_end >= 16 * PIECE:
                    os.posix_fadvise(file.fileno(), 0, at + PIECE, os.POSIX_FADV_DONTNEED)
                    buffer_end = at + PIECE
            if not keep_cached and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        yield Finding(name, f"it cannot be read ({error.strerror})")
        return
    while damaged:
        run = 1
        while run < len(damaged) and damaged[run] == damaged[0] + run:
            run += 1
        at = entry.start + damaged[0] * PIECE
        nbytes = min(run * PIECE, entry.size - at)
        yield Finding(name, f"{nbytes} bytes were altered, by their checksum", at)
        del damaged[:run]


def _read_exactly(descriptor: int, offset: int, count: int) -> bytes:
    """`count` bytes from `offset`, fewer only at the end of the file."""
    parts = []
    while count > 0:
        part = os.pread(descriptor, min(count, PIECE), offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
