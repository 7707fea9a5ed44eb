"""Writing a pack: tensors stream to disk as they come, and the pack takes its name in one step when it is
whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import msgspec

from haversack.core._files import (
    explain_write_errors,
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
    STORE_NAME,
    STORE_RECORDS,
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
from haversack.core._summed import SummedFile
from haversack.core._verified import mark_verified
from haversack.core.errors import UserError, not_allowed

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from haversack.core._expert_file import ExpertFile, Owner

_RESERVED = (
    16 * 1024
)  # room for the header of about 120 tensors; a longer one moves the data once, at the end
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
    error or by Ctrl-C, removes that. At no moment is there half a pack under `path`: the old pack, if any, is
    exchanged for the new one in one step. Written bytes are flushed and dropped from the page cache every 16
    MiB.

    `expected_bytes` (optional) refuses a disk that is too full before work starts. `sealer` (optional)
    encrypts the weights; nothing of them reaches the disk in the clear. Raises UserError when something
    other than a pack is at `path`, and when the disk is full or cannot be written.

    >>> with PackWriter(Path("my.pack")) as writer:
    ...     writer.add_tensor("norm.weight", "f32", (2,), [struct.pack("<2f", 1, 2)])
    ...     writer.add_file("tokenizer.json", Path("tokenizer.json"))
    ...     writer.finish({"architecture": {...}, "plan": {"precision": "keep"}})
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
        self._weights: SummedFile | None = None
        self._experts: ExpertFile | None = None
        self._identity = ""
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
        if self._experts is not None:
            self._experts.abandon()
        remove(self._partial)

    def keep_experts(self, model: str, owners: Mapping[str, Owner]) -> None:
        """Let the tensors `owners`, name -> (block, expert), and their parts, go to the expert store of the
        model `model` instead of the weights: a record for each expert, written when all of it was given. With
        (block, expert, part) a record is a part of an expert, whose tensors are given one after the other.

        An expert given tensor by tensor costs its own bytes of memory; one whose tensors come in parts waits
        for the next block. Call before the first of them. Without any owners nothing changes; sealed experts
        lie with the other weights.
        """
        self._identity = model if owners else ""
        if owners and self._sealer is None:
            from haversack.core._expert_file import ExpertFile

            with explain_write_errors(self.path):
                self._experts = ExpertFile(self._partial / STORE_NAME, model, owners)

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
        if self._experts is not None:
            with explain_write_errors(self.path):
                if self._experts.takes(name, kind, shape, group, layout, chunks):
                    return
        self._torn = True
        with explain_write_errors(self.path):
            if self._weights is None:
                self._weights = SummedFile(self._partial / self._weights_name, _RESERVED)
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
        known = [*self._tensors, *(() if self._experts is None else self._experts.names)]
        if name in self._forms or not any(part.startswith(f"{name}.") for part in known):
            raise ValueError(f"{name!r} has no parts here, or has a form already")
        check_form_entry(name, form, known)
        self._forms[name] = dict(form)

    def add_file(self, name: str, data: bytes | os.PathLike[str]) -> None:
        """Add a file beside the weights: bytes, or the path of a file to copy. Raises ValueError for a name
        that could leave the folder or was given before, UserError for a file that cannot be read and for a
        full disk."""
        taken = (RECORD_NAME, WEIGHTS_NAME, STORE_NAME, SEALED_NAME)
        if not plain_name(name) or name in taken or name in self._files:
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
                target = SummedFile(self._partial / name, 0)
                try:
                    for piece in pieces:
                        target.write(piece)
                    self._files[name] = target.close(b"")
                finally:
                    target.abandon()

    def finish(self, record: Mapping[str, Any]) -> PackRecord:
        """Complete the pack and give it its name; returns its record.

        `record` may hold architecture, plan, activations (default: the plan's, else f32), provenance, family
        (a FamilyEntry), delta (a DeltaEntry, of packs of that kind), measurements. Raises ValueError for
        other keys, UserError when the disk is full.
        """
        known = {"architecture", "plan", "activations", "provenance", "family", "delta", "measurements"}
        if not set(record) <= known:
            raise ValueError(f"a pack's record has no {sorted(set(record) - known)}")
        if self._torn:
            raise ValueError("a tensor was not written whole, so this pack cannot be finished")
        plan, provenance = dict(record.get("plan", {})), dict(record.get("provenance", {}))
        if self._identity:
            provenance["identity"] = self._identity
        with explain_write_errors(self.path):
            if self._experts is not None and self._experts.parts:
                provenance[STORE_RECORDS] = "parts"
            written = PackRecord(
                format=FORMAT,
                kind=self.kind,
                architecture=dict(record.get("architecture", {})),
                plan=plan,
                activations=str(record.get("activations", plan.get("activations", "f32"))),
                provenance=provenance,
                family=record.get("family"),
                delta=record.get("delta"),
                measurements=list(record.get("measurements", [])),
                tensors=(),
                forms=self._forms,
                files=dict(self._files),
                crc32="",
            )
            if self._weights is not None:
                written, front = self._front(written)
                self._files = {self._weights_name: self._weights.close(front), **self._files}
            if self._experts is not None:
                entry, stored = self._experts.close()
                self._files = {**self._files, STORE_NAME: entry}
                written = msgspec.structs.replace(written, tensors=written.tensors + stored)
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
