"""The expert store: a file of records that are read one by one, each at a page of its own. docs/format.md has
the bytes.

A record is one expert, or one part of it (a matrix, a plane of bits), with the tensors that make it up. The
first page says where the header is; records follow, each at a multiple of 4096; the header, which is JSON,
comes last, so that a writer streams records and keeps none. Opening checks the page, the header, every size,
offset and overlap; a record's checksums are compared at every read, before anything uses its bytes.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from haversack.core._files import explain_write_errors, partial_path, put_in_place, remove
from haversack.core._files import remove_stale_partials as remove_stale
from haversack.core._record import PIECE, STORE_NAME, FileEntry, TensorEntry, nbytes_of
from haversack.core._safetensors import DIMENSIONS_MOST, NAME_MOST
from haversack.core._summed import SummedFile
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.storage import BLOCK, DirectFile, SlowStorage

if TYPE_CHECKING:
    import mmap

    from typing_extensions import Buffer

__all__ = ["STORE_NAME", "ExpertRecord", "ExpertStore", "ExpertStoreWriter", "StoreHeader", "store_schema"]

STORE_FORMAT = (1, 0)
HEADER_MOST = 64 * 2**20
"""Longest header accepted, in bytes: about 400,000 tensors."""
NUMBER_MOST = 2**20
"""Layers and experts are numbered below this."""
TENSOR_STEP = 64
"""Tensors begin at a multiple of this inside their record."""

_MAGIC = b"HVEXPERT"
# Magic, major, minor, the header's offset, its bytes, its CRC-32; zeros; the page's own CRC-32.
_PAGE = struct.Struct(f"<8sIIQQI{BLOCK - 40}xI")

Key = tuple[int, int, str]
"""(layer, expert, part); a record that is a whole expert has the part ""."""
Given = tuple[str, str, tuple[int, ...], int | None, str, "Iterable[Buffer]"]
"""A tensor to write: name, kind, shape, group, layout, and its bytes in pieces."""


class StoredTensor(msgspec.Struct, frozen=True):
    """A tensor of a record, as TensorEntry says; `start` counts from the record's first byte."""

    name: str
    kind: str
    shape: tuple[int, ...]
    group: int | None
    layout: str
    start: int
    nbytes: int


class ExpertRecord(msgspec.Struct, frozen=True):
    """One record: `nbytes` at `offset` of the file, under `sums`, a CRC-32 for each MiB of them."""

    layer: int
    expert: int
    part: str
    offset: int
    nbytes: int
    sums: tuple[int, ...]
    tensors: tuple[StoredTensor, ...]

    @property
    def key(self) -> Key:
        """What the record is found by."""
        return self.layer, self.expert, self.part

    def entries(self, file: str = STORE_NAME) -> tuple[TensorEntry, ...]:
        """The record's tensors as those of a pack that holds the store under the name `file`."""
        return tuple(
            TensorEntry(t.name, t.kind, t.shape, t.group, t.layout, file, self.offset + t.start, t.nbytes)
            for t in self.tensors
        )

    def __str__(self) -> str:
        part = f", {self.part}" if self.part else ""
        return f"expert {self.expert} of layer {self.layer}{part}"


class StoreHeader(msgspec.Struct, frozen=True):
    """What a store says of itself. `model` is the identity of the model that it belongs to."""

    format: tuple[int, int]
    model: str
    records: tuple[ExpertRecord, ...]


def store_schema() -> dict[str, Any]:
    """The JSON Schema of a store's header."""
    return msgspec.json.schema(StoreHeader)


class ExpertStore:
    """An opened store; made by `ExpertStore.open`. A context manager; `read` may be called from a thread.

    `records` are found by (layer, expert, part), in the order of the file.
    """

    def __init__(self, file: DirectFile, header: StoreHeader) -> None:
        self.path = file.path
        self.model = header.model
        self.records: dict[Key, ExpertRecord] = {record.key: record for record in header.records}
        self._file = file

    @classmethod
    def open(cls, path: str | os.PathLike[str], storage: SlowStorage | None = None) -> Self:
        """Open the store at `path`, to be read at the pace of `storage` (None: this machine's own).

        Raises UserError when it cannot be read, DamagedFileError with the first thing that does not hold.
        """
        file = DirectFile(path, storage)
        try:
            return cls(file, _read_header(file))
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def bytes_read(self) -> int:
        """Bytes that left the storage so far, alignment included."""
        return self._file.bytes_read

    def require_model(self, identity: str) -> None:
        """Raises UserError when the store belongs to another model than the one of this `identity`."""
        if self.model != identity:
            raise UserError(
                f"{self.path} holds the experts of another model ({self.model or 'unnamed'}, not "
                f"{identity}); pack the model again.",
                field="store",
                given=self.model,
                nearest=identity,
            )

    def read(
        self,
        record: ExpertRecord,
        buffer: mmap.mmap | None = None,
        going: Callable[[], bool] | None = None,
    ) -> memoryview:
        """The bytes of `record`, whose checksums held, in `buffer` (made by `aligned_buffer`) or in memory
        of their own; see `DirectFile.read` for `going`.

        Raises DamagedFileError when the file ends before or the bytes were altered, UserError when the
        storage fails, ReadingStopped when it is called off.
        """
        view = self._file.read(record.offset, record.nbytes, buffer, going)
        for index, expected in enumerate(record.sums):
            if zlib.crc32(view[index * PIECE : (index + 1) * PIECE]) != expected:
                at = record.offset + index * PIECE
                raise DamagedFileError(self.path, f"{record} was altered, by its checksum (from byte {at})")
        return view

    def close(self) -> None:
        """Close the file; reading afterwards fails."""
        self._file.close()


def _read_header(file: DirectFile) -> StoreHeader:
    try:
        if file.size < BLOCK:
            raise ValueError(f"it has {file.size} bytes, less than its first page")
        start, count, expected = _checked_page(file.read(0, BLOCK), file.size)
        text = file.read(start, count)
        if zlib.crc32(text) != expected:
            raise ValueError("its header does not match its checksum: it was altered")
        return checked_header(bytes(text), start)
    except ValueError as error:
        raise DamagedFileError(file.path, str(error)) from error


def _checked_page(page: memoryview, size: int) -> tuple[int, int, int]:
    """(offset, bytes, CRC-32) of the header, from a file's first page. Raises ValueError with the finding."""
    magic, major, minor, start, count, expected, sealed = _PAGE.unpack(page)
    if magic != _MAGIC:
        raise ValueError("it does not begin as an expert store does")
    if sealed != zlib.crc32(page[:-4]):
        raise ValueError("its first page does not match its checksum: it was altered")
    if major != STORE_FORMAT[0]:
        raise ValueError(
            f"it is of format {major}.{minor} and this program reads {STORE_FORMAT[0]}.x; "
            f"use a {'newer' if major > STORE_FORMAT[0] else 'older'} haversack"
        )
    if count > HEADER_MOST:
        raise ValueError(f"its header claims {count} bytes, more than the {HEADER_MOST} any model needs")
    if start % BLOCK or start < BLOCK or start + count != size:
        raise ValueError(f"it has {size} bytes and its header is said to end at {start + count}")
    return start, count, expected


def checked_header(text: bytes, end: int) -> StoreHeader:
    """The header `text` of a store whose records end at byte `end`. Raises ValueError with the finding."""
    try:
        header = msgspec.json.decode(text, type=StoreHeader)
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    except msgspec.MsgspecError as error:
        raise ValueError(f"its header is no header of an expert store ({error})") from error
    if not 1 <= len(header.model) <= NAME_MOST:
        raise ValueError(f"its header names the model by {len(header.model)} characters")
    seen: set[Key] = set()
    at = BLOCK
    for record in header.records:
        if not (0 <= record.layer < NUMBER_MOST and 0 <= record.expert < NUMBER_MOST):
            raise ValueError(
                f"it has a layer {record.layer} or an expert {record.expert}, which no model has"
            )
        shown = f"{ascii(str(record)[:80])[1:-1]}"
        if record.key in seen:
            raise ValueError(f"{shown} occurs twice")
        seen.add(record.key)
        if record.offset % BLOCK:
            raise ValueError(f"{shown} begins at byte {record.offset}, inside a page")
        if record.offset < at:
            raise ValueError(f"{shown} begins at byte {record.offset}, before the one before it ends")
        if record.nbytes < 1 or record.nbytes > end - record.offset:
            raise ValueError(f"{shown} of {record.nbytes} bytes lies outside of the file")
        if len(record.sums) != -(-record.nbytes // PIECE):
            raise ValueError(f"the checksums of {shown} do not cover its {record.nbytes} bytes")
        _check_tensors(record, shown)
        at = record.offset + record.nbytes
    return header


def _check_tensors(record: ExpertRecord, shown: str) -> None:
    at = 0
    for tensor in record.tensors:
        name = ascii(tensor.name[:80])[1:-1]
        if not 1 <= len(tensor.name) <= NAME_MOST:
            raise ValueError(f"{shown} has a tensor whose name has {len(tensor.name)} characters")
        if len(tensor.shape) > DIMENSIONS_MOST or not all(0 < size < 2**31 for size in tensor.shape):
            raise ValueError(f"the tensor {name} of {shown} has an impossible shape")
        try:
            needed = nbytes_of(tensor.kind, tensor.shape, tensor.group, tensor.layout)
        except ValueError as error:
            raise ValueError(f"the tensor {name} of {shown}: {error}") from error
        if needed != tensor.nbytes:
            raise ValueError(
                f"the tensor {name} of {shown} takes {needed} bytes and is said to have {tensor.nbytes}"
            )
        if tensor.start < at or tensor.start % TENSOR_STEP:
            raise ValueError(f"the tensor {name} of {shown} begins at byte {tensor.start}, where it cannot")
        at = tensor.start + tensor.nbytes
    if at != record.nbytes:
        raise ValueError(f"the tensors of {shown} end at byte {at} of its {record.nbytes}")


class StoreBody:
    """The file of a store while it is written: records as they come, the header and first page at the end.

    For those who see to partial files themselves (PackWriter); others take `ExpertStoreWriter`.
    """

    def __init__(self, path: Path, model: str) -> None:
        if not 1 <= len(model) <= NAME_MOST:
            raise ValueError("a store names the model that it belongs to")
        self.model = model
        self.records: list[ExpertRecord] = []
        self._keys: set[Key] = set()
        self._file = SummedFile(path, BLOCK)
        self._torn = False

    def add(self, layer: int, expert: int, tensors: Iterable[Given], part: str = "") -> ExpertRecord:
        """Append a record. Raises ValueError for one that was there, and for bytes that are not what a
        tensor's kind, shape, group and layout need."""
        key = (int(layer), int(expert), part)
        if key in self._keys or not (0 <= key[0] < NUMBER_MOST and 0 <= key[1] < NUMBER_MOST):
            raise ValueError(f"the record {key} was given before, or is none")
        self._torn = True
        self._pad(BLOCK)
        offset = BLOCK + self._file.size
        stored: list[StoredTensor] = []
        sums: list[int] = []
        running, done = 0, 0

        def write(data: memoryview) -> None:
            nonlocal running, done
            self._file.write(data)
            while data.nbytes:
                piece = data[: PIECE - done % PIECE]
                running = zlib.crc32(piece, running)
                done += piece.nbytes
                if done % PIECE == 0:
                    sums.append(running)
                    running = 0
                data = data[piece.nbytes :]

        for name, kind, shape, group, layout, chunks in tensors:
            write(memoryview(bytes(-done % TENSOR_STEP)))
            start, needed = done, nbytes_of(kind, tuple(shape), group, layout)
            for chunk in chunks:
                view = memoryview(chunk)
                write(view.cast("B") if view.c_contiguous else memoryview(view.tobytes()))
            if done - start != needed or needed == 0:
                raise ValueError(f"the tensor {name} needs {needed} bytes and {done - start} were given")
            stored.append(StoredTensor(name, kind, tuple(shape), group, layout, start, needed))
        if not stored:
            raise ValueError(f"the record {key} holds no tensor")
        if done % PIECE:
            sums.append(running)
        record = ExpertRecord(*key, offset, done, tuple(sums), tuple(stored))
        self.records.append(record)
        self._keys.add(key)
        self._torn = False
        return record

    def close(self) -> FileEntry:
        """Write header and first page, flush and close; the file's entry in a pack."""
        if self._torn:
            raise ValueError("a record was not written whole, so this store cannot be finished")
        self._pad(BLOCK)
        start = BLOCK + self._file.size
        text = msgspec.json.encode(StoreHeader(STORE_FORMAT, self.model, tuple(self.records)))
        if len(text) > HEADER_MOST:
            raise UserError(f"{len(self.records)} records are more than one expert store may hold.")
        checked_header(text, start)
        self._file.write(text)
        page = _PAGE.pack(_MAGIC, *STORE_FORMAT, start, len(text), zlib.crc32(text), 0)
        return self._file.close(page[:-4] + zlib.crc32(page[:-4]).to_bytes(4, "little"))

    def abandon(self) -> None:
        """Close the file as it is."""
        self._file.abandon()

    def _pad(self, step: int) -> None:
        self._file.write(bytes(-self._file.size % step))


class ExpertStoreWriter:
    """Writes the store `path` of the model `model`; a context manager.

    Until `finish` the file is `NAME.partial-*` beside its goal; leaving the block without it removes that.
    The old file, if any, is replaced in one step. Raises UserError when the disk is full or cannot be
    written.

    >>> with ExpertStoreWriter(Path("experts.store"), identity) as writer:
    ...     writer.add(0, 3, [("up", "f16", (96, 64), None, "rows-1", [up]), ...])
    ...     writer.finish()
    """

    def __init__(self, path: str | os.PathLike[str], model: str) -> None:
        self.path = Path(path)
        self._model = model
        self._partial = partial_path(self.path)
        self._body: StoreBody | None = None

    def __enter__(self) -> Self:
        with explain_write_errors(self.path):
            remove_stale(self.path)
            self._body = StoreBody(self._partial, self._model)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._body is not None:
            self._body.abandon()
        remove(self._partial)

    def add(self, layer: int, expert: int, tensors: Sequence[Given], part: str = "") -> ExpertRecord:
        """See StoreBody."""
        assert self._body is not None, "a store's writer is a context manager"
        with explain_write_errors(self.path):
            return self._body.add(layer, expert, tensors, part)

    def finish(self) -> FileEntry:
        """Complete the file and give it its name."""
        assert self._body is not None, "a store's writer is a context manager"
        with explain_write_errors(self.path):
            entry = self._body.close()
            put_in_place(self._partial, self.path)
        return entry
