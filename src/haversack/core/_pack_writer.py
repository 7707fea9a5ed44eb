"""Writing a pack: tensors stream to disk as they come, and the pack takes its name in one step when it is
whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Protocol, Self

import msgspec

from haversack.core._files import (
    explain_write_errors,
    flush_data,
    flush_folder,
    partial_path,
    put_in_place,
    remove,
    remove_stale_partials,
)
from haversack.core._record import (
    DTYPE_OF_KIND,
    FORMAT,
    PACK_KINDS,
    PIECE,
    RECORD_NAME,
    SEALED_NAME,
    WEIGHTS_NAME,
    FileEntry,
    PackRecord,
    TensorEntry,
    check_form_entry,
    encode_record,
    nbytes_of,
    plain_name,
)
from haversack.core._safetensors import header_bytes
from haversack.core._verified import mark_verified
from haversack.core.errors import UserError, not_allowed

if TYPE_CHECKING:
    from typing_extensions import Buffer

_RESERVED = (
    16 * 1024
)  # room for the header of about 120 tensors; a longer one moves the data once, at the end
_FLUSH_EVERY = 16 * PIECE  # written bytes that may wait in the page cache
_METADATA = {"format": "pt", "haversack": f"{FORMAT[0]}.{FORMAT[1]}"}


class Sealer(Protocol):
    """What encrypts the weights of a pack on their way (formats/sealed.py). `file`: where they lie then."""

    file: str

    def blocks(self, name: str, nbytes: int, chunks: Iterable[Buffer]) -> Iterator[Buffer]:
        """What is stored of a tensor of `nbytes`, which `chunks` give; a multiple of 4096 bytes."""

    def front_nbytes(self, files: Sequence[str]) -> int:
        """Bytes before the first tensor in a pack that has `files` beside it; a multiple of 4096."""

    def front(self, record: PackRecord, folder: Path) -> bytes:
        """These bytes; they vouch for `record` and for the files it names, which lie in `folder`."""


class PackWriter:
    """Writes the pack `path`, a folder; a context manager.

    Until `finish` everything lies in `NAME.partial-*` beside it; leaving the block without `finish`, by an
    error or by Ctrl-C, removes that. At no moment is there half a pack under `path`: the old pack, if any,
    is exchanged for the new one in one step. Written bytes are flushed and dropped from the page cache
    every 16 MiB.

    `expected_bytes` (optional) refuses a disk that is too full before work starts. `sealer` (optional)
    encrypts the weights; nothing of them reaches the disk in the clear. Raises UserError when something
    other than a pack is at `path`, and when the disk is full or cannot be written.

    >>> with PackWriter(Path("my.pack")) as writer: ...     writer.add_tensor("norm.weight", "f32", (2,),
    [struct.pack("<2f", 1, 2)]) ...     writer.add_file("tokenizer.json", Path("tokenizer.json")) ...
    writer.finish({"architecture": {...}, "plan": {"precision": "keep"}})
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kind: str = "language",
        *,
        expected_bytes: int | None = None,
        sealer: Sealer | None = None,
    ) -> None:
        if kind not in PACK_KINDS:
            raise not_allowed("kind", kind, PACK_KINDS)
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - a link at `path` itself must not be resolved
        self.kind = kind
        self._expected_bytes = expected_bytes
        self._partial = partial_path(self.path)
        self._sealer = sealer
        self._weights_name = WEIGHTS_NAME if sealer is None else sealer.file
        self._tensors: dict[str, tuple[str, tuple[int, ...], int | None, str, int]] = {}
        self._places: dict[str, int] = {}  # where a tensor begins, from the first one on
        self._forms: dict[str, dict[str, Any]] = {}
        self._files: dict[str, FileEntry] = {}
        self._weights: _SummedFile | None = None
        self._torn = False

    def __enter__(self) -> Self:
        with explain_write_errors(self.path):
            check_goal(self.path)
            remove_stale_partials(self.path)
            free = shutil.disk_usage(self.path.parent).free
            if self._expected_bytes is not None and self._expected_bytes > free:
                need, have = self._expected_bytes / 2**20, free / 2**20
                raise UserError(
                    f"{self.path} needs {need:.1f} MiB and its disk has {have:.1f} MiB free; "
                    "free some space or choose another -o.",
                    field="output",
                    given=str(self.path),
                )
            try:
                self._partial.mkdir()
            except BaseException:
                remove(self._partial)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._weights is not None:
            self._weights.abandon()
        remove(self._partial)

    def add_tensor(
        self,
        name: str,
        kind: str,
        shape: Iterable[int],
        chunks: Iterable[Buffer],
        group: int | None = None,
        layout: str = "rows-1",
    ) -> None:
        """Append a tensor; `chunks` are its bytes, in pieces that are written as they come.

        Call in order of first use. Raises ValueError for a name given twice and for bytes that do not add up
        to what kind, shape, group and layout need; UserError when the disk is full.
        """
        shape = tuple(int(size) for size in shape)
        needed = nbytes_of(kind, shape, group, layout)
        if name in self._tensors or not name:
            raise ValueError(f"the tensor name {name!r} is empty or was given before")
        self._torn = True
        with explain_write_errors(self.path):
            if self._weights is None:
                self._weights = _SummedFile(self._partial / self._weights_name, _RESERVED)
            self._places[name] = self._weights.size
            given = _Counted(chunks)
            for chunk in given if self._sealer is None else self._sealer.blocks(name, needed, given):
                self._weights.write(chunk)
        if given.nbytes != needed:
            raise ValueError(f"the tensor {name} needs {needed} bytes and {given.nbytes} were given")
        self._tensors[name] = (kind, shape, group, layout, needed)
        self._torn = False

    def add_form(self, name: str, form: Mapping[str, Any]) -> None:
        """Say how the tensors NAME.PART that were added make up the matrix `name`: `form`, `shape` and what
        else the form asks for (run/forms/). Raises ValueError for what cannot be."""
        if name in self._forms or not any(part.startswith(f"{name}.") for part in self._tensors):
            raise ValueError(f"{name!r} has no parts here, or has a form already")
        check_form_entry(name, form, self._tensors)
        self._forms[name] = dict(form)

    def add_file(self, name: str, data: bytes | os.PathLike[str]) -> None:
        """Add a file beside the weights: bytes, or the path of a file to copy. Raises ValueError for a name
        that could leave the folder or was given before, UserError for a file that cannot be read and for a
        full disk."""
        taken = name in (RECORD_NAME, WEIGHTS_NAME, SEALED_NAME) or name in self._files
        if not plain_name(name) or taken:
            raise ValueError(f"the file name {name!r} is not allowed in a pack or was given before")
        with contextlib.ExitStack() as stack:
            pieces: Iterable[Buffer]
            if isinstance(data, bytes):
                pieces = (data,)
            else:
                try:
                    source = stack.enter_context(Path(data).open("rb"))
                except OSError as error:
                    said = f"{os.fspath(data)} cannot be read: {error.strerror}."
                    raise UserError(said, field="path", given=os.fspath(data)) from error
                pieces = iter(lambda: source.read(PIECE), b"")
            with explain_write_errors(self.path):
                target = _SummedFile(self._partial / name, 0)
                try:
                    for piece in pieces:
                        target.write(piece)
                    self._files[name] = target.close(b"")
                finally:
                    target.abandon()

    def finish(self, record: Mapping[str, Any]) -> PackRecord:
        """Complete the pack and give it its name; returns its record.

        `record` may hold architecture, plan, activations (default: the plan's, else f32), provenance,
        measurements. Raises ValueError for other keys, UserError when the disk is full.
        """
        known = {"architecture", "plan", "activations", "provenance", "measurements"}
        if not set(record) <= known:
            raise ValueError(f"a pack's record has no {sorted(set(record) - known)}")
        if self._torn:
            raise ValueError("a tensor was not written whole, so this pack cannot be finished")
        plan = dict(record.get("plan", {}))
        with explain_write_errors(self.path):
            written = PackRecord(
                format=FORMAT,
                kind=self.kind,
                architecture=dict(record.get("architecture", {})),
                plan=plan,
                activations=str(record.get("activations", plan.get("activations", "f32"))),
                provenance=dict(record.get("provenance", {})),
                measurements=list(record.get("measurements", [])),
                tensors=(),
                forms=self._forms,
                files=dict(self._files),
                crc32="",
            )
            if self._weights is not None:
                written, front = self._front(written)
                self._files = {self._weights_name: self._weights.close(front), **self._files}
                written = msgspec.structs.replace(written, files=self._files)
            data = encode_record(written)
            with (self._partial / RECORD_NAME).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            flush_folder(self._partial)
            check_goal(self.path)
            put_in_place(self._partial, self.path)
        for name, entry in self._files.items():
            mark_verified(self.path / name, entry)
        return written

    def _front(self, record: PackRecord) -> tuple[PackRecord, bytes]:
        """`record` with its tensors, and what stands before them in their file."""
        if self._sealer is not None:
            start = max(_RESERVED, self._sealer.front_nbytes(list(record.files)))
            record = msgspec.structs.replace(record, tensors=self._entries(start))
            return record, self._sealer.front(record, self._partial).ljust(start, b"\0")
        described = [
            (name, DTYPE_OF_KIND[kind], (nbytes,) if layout != "rows-1" else shape, nbytes)
            for name, (kind, shape, _, layout, nbytes) in self._tensors.items()
        ]
        header = header_bytes(described, _METADATA, least=_RESERVED)
        return msgspec.structs.replace(record, tensors=self._entries(len(header))), header

    def _entries(self, start: int) -> tuple[TensorEntry, ...]:
        return tuple(
            TensorEntry(
                name, kind, shape, group, layout, self._weights_name, start + self._places[name], nbytes
            )
            for name, (kind, shape, group, layout, nbytes) in self._tensors.items()
        )


class _Counted:
    """Hands on `chunks` and counts their bytes."""

    def __init__(self, chunks: Iterable[Buffer]) -> None:
        self._chunks = chunks
        self.nbytes = 0

    def __iter__(self) -> Iterator[Buffer]:
        for chunk in self._chunks:
            self.nbytes += memoryview(chunk).nbytes
            yield chunk


def check_goal(path: Path) -> None:
    """Raises UserError when `path` is taken by something that is not a pack, which a pack must never
    replace."""
    if not path.parent.is_dir():
        raise UserError(
            f"{path} cannot be written: the folder {path.parent} does not exist.",
            field="output",
            given=str(path),
        )
    if os.path.lexists(path) and not (path / RECORD_NAME).is_file():
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            return
        raise UserError(
            f"{path} is there already and is no pack; choose another -o or remove it.",
            field="output",
            given=str(path),
        )


class _SummedFile:
    """A file written front to back with a CRC-32 for each MiB, `start` bytes left free for a header."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self.size = 0
        self._start = start
        self._pieces: list[int] = []
        self._sum = 0
        self._file: IO[bytes] = path.open("w+b", buffering=0)
        self._file.seek(start)
        self._flushed = 0

    def write(self, chunk: Buffer) -> None:
        view = memoryview(chunk)
        view = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
        while view.nbytes:
            room = PIECE - self.size % PIECE
            piece = view[:room]
            _write_all(self._file, piece)
            self._sum = zlib.crc32(piece, self._sum)
            self.size += piece.nbytes
            if self.size % PIECE == 0:
                self._pieces.append(self._sum)
                self._sum = 0
            view = view[room:]
            if self.size - self._flushed >= _FLUSH_EVERY:
                self._drop()

    def close(self, header: bytes) -> FileEntry:
        """Put `header` in front, flush, close; the file's entry."""
        if self.size % PIECE:
            self._pieces.append(self._sum)
        if len(header) > self._start:
            self._make_room(len(header))
        if header:
            self._file.seek(0)
            _write_all(self._file, memoryview(header))
        os.fsync(self._file.fileno())
        self._file.close()
        return FileEntry(self._start + self.size, self._start, zlib.crc32(header), tuple(self._pieces))

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def _make_room(self, start: int) -> None:
        """Move the data to begin at `start`, the last piece first."""
        descriptor = self._file.fileno()
        end = self.size
        while end > 0:
            begin = max(0, end - PIECE)
            piece = os.pread(descriptor, end - begin, self._start + begin)
            self._file.seek(start + begin)
            _write_all(self._file, memoryview(piece))
            end = begin
        self._start = start

    def _drop(self) -> None:
        flush_data(self._file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._flushed = self.size


def _write_all(file: IO[bytes], data: memoryview) -> None:
    while data.nbytes:
        data = data[file.write(data) :]
