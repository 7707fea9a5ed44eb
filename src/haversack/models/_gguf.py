"""A GGUF file as a checkpoint: hub config, our tensor names, tokenizer, and the numbers as the file has them.

F32, F16, BF16, Q8_0 and Q4_0 are taken as stored: what multiplies is bit for bit what the file holds. Q8_0
and Q4_0 are put into the kernels' layout while they are read, as are the rows of Llama's query and key. Other
block types (Q4_K, Q6_K, ...) are no type of the engine; `values` dequantizes them exactly, for packing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from haversack.core.errors import DamagedFileError, UserError, nearest_name
from haversack.core.pack import TensorEntry
from haversack.formats._gguf_types import PLAIN, STORED
from haversack.formats.gguf import GgufArray, GgufFile
from haversack.models._architecture import Architecture
from haversack.models._gguf_config import read_config
from haversack.models._gguf_names import Place, places
from haversack.models._rearranged import Piece, Rearranged, head_order, put_in_order
from haversack.models.language import read_architecture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from haversack.models._tokenizer import Tokenizer

    F32 = NDArray[np.float32]

PIECE = 8 << 20
SUFFIX = ".gguf"
ASIDE = ("rope_freqs.", "rope_factors_")
"""What the config is made from."""


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """True for a file that is named like GGUF or begins like it."""
    file = Path(path)
    if not file.is_file():
        return False
    if file.suffix == SUFFIX:
        return True
    try:
        with file.open("rb") as opened:
            return opened.read(4) == b"GGUF"
    except OSError:
        return False


class GgufModel:
    """A GGUF file as a `TensorSource` under our tensor names; made by `GgufModel.open`.

    `config` is a hub config made from the metadata. A tensor that has to be put in order is `Rearranged`.
    """

    def __init__(self, file: GgufFile, config: dict[str, Any], architecture: Architecture) -> None:
        self.file_format = file
        self.path = file.path
        self.config = config
        self.architecture = architecture
        self.places = places(architecture)
        self.tensors: dict[str, TensorEntry] = {}
        for name, shape in architecture.tensors().items():
            self.tensors[name] = self._entry(name, shape, self.places[name])
        known = {place.name for place in self.places.values()}
        strange = [name for name in file.tensors if name not in known and not name.startswith(ASIDE)]
        if strange:
            raise UserError(
                f"{self.path}: {architecture.family} has no place for {counted(strange, ())}; it is a model "
                "of another kind than its metadata says.",
                field="model",
                given=strange[0],
            )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a GGUF file; only its header is read.

        Raises UserError for a file that cannot be read or an architecture that is not known, DamagedFileError
        for a header, metadata or tensors that do not hold; each names the file.
        """
        file = GgufFile.open(path)
        config = read_config(file)
        try:
            architecture = read_architecture(config)
        except UserError as error:
            said = str(error).removeprefix("config.json: ")
            raise UserError(
                f"{file.path}, its metadata as a config: {said}", field=error.field, given=error.given
            ) from error
        return cls(file, config, architecture)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file itself."""
        return (self.path,)

    def _entry(self, name: str, shape: tuple[int, ...], place: Place) -> TensorEntry:
        """The tensor of ours at `place`. Raises DamagedFileError when the file lacks it, UserError for
        another shape."""
        held = self.file_format.tensors.get(place.name)
        if held is None:
            nearest = nearest_name(place.name, self.file_format.tensors)
            hint = f" (the nearest it holds is {nearest})" if nearest else ""
            raise DamagedFileError(self.path, f"the tensor {place.name} is missing{hint}", field=place.name)
        columns = shape[1:]
        stored_shape = (place.rows, *columns)
        if len(columns) == 0 and len(held.shape) == 2 and held.shape[0] * held.shape[1] == place.rows:
            stored_shape = held.shape  # a norm for each head, one after the other
        elif len(held.shape) == 3 and len(columns) == 1 and held.shape[0] * held.shape[1] == place.rows:
            stored_shape = (held.shape[0], shape[0], *columns)  # experts, one after the other
        if held.shape != stored_shape:
            raise UserError(
                f"{self.path}: the tensor {place.name} has the shape {list(held.shape)} where the metadata "
                f"needs {list(stored_shape)}.",
                field=place.name,
                given=list(held.shape),
                nearest=list(stored_shape),
            )
        row = held.nbytes // place.rows
        offset, nbytes = held.offset + place.first * row, shape[0] * row
        if held.kind in PLAIN and not place.heads and not place.shift:
            return TensorEntry(name, held.kind, shape, None, "rows-1", held.file, offset, nbytes)
        kind, group, layout, size = held.kind, None, held.layout, nbytes
        if kind in STORED and len(shape) == 2:
            from haversack.core._record import nbytes_of

            (kind, group), layout = STORED[held.kind], "rows16-1"
            size = nbytes_of(kind, shape, group, layout)
        return Rearranged(
            name,
            kind,
            shape,
            group,
            layout,
            held.file,
            offset,
            size,
            stored=nbytes,
            heads=place.heads,
            shift=place.shift,
        )

    def blocking(self) -> dict[str, str]:
        """Our names of the tensors whose type the engine does not run, and that type."""
        return {name: entry.kind for name, entry in self.tensors.items() if entry.layout == "gguf-blocks"}

    def quantized(self) -> dict[str, str]:
        """Our names of all tensors stored in blocks, and the type of the file."""
        return {
            name: self.file_format.tensors[self.places[name].name].kind
            for name, entry in self.tensors.items()
            if entry.kind not in PLAIN
        }

    def refuse_blocking(self) -> None:
        """Raises UserError, naming the tensors and what to do, when some are of a type that is not run."""
        found = self.blocking()
        if not found:
            return
        raise UserError(
            f"{self.path} has {counted(self.file_names(found), found.values())}, which the engine does not "
            "run (F32, F16, BF16, Q8_0 and Q4_0 run as stored); pack it and requantize just these: haversack "
            f"pack {self.path} --device DEVICE --requantize int8.",
            field="requantize",
            given=sorted(set(found.values())),
            nearest="int8",
        )

    def file_names(self, names: Iterable[str]) -> list[str]:
        """The file's own names of our tensors `names`."""
        return list(dict.fromkeys(self.places[name].name for name in names))

    def bytes(self, name: str) -> memoryview:
        """The tensor's bytes in its entry's layout: a view of the mapped file, or a copy put in order.

        Raises UserError for an unknown name, and for a type that is not run.
        """
        entry = self._known(name)
        if not isinstance(entry, Rearranged):
            place = self.places[name]
            whole = self.file_format.bytes(place.name)
            start = entry.offset - self.file_format.tensors[place.name].offset
            return whole[start : start + entry.nbytes]
        import numpy as np

        out: Any = np.empty(entry.nbytes, np.uint8)
        with self.reader() as read:
            for piece in self.pieces(name, out):
                piece.put(read(piece.offset, piece.count))
        return memoryview(out).toreadonly()

    def pieces(self, name: str, out: Any) -> Iterator[Piece]:
        """See `RearrangingSource`. Raises UserError for a type that is not run."""
        import numpy as np

        entry = self._known(name)
        if entry.layout == "gguf-blocks":
            raise UserError(
                f"{self.path}: {self.places[name].name} is {entry.kind}, which the engine does not run; pack "
                "it with --requantize.",
                field="requantize",
                given=entry.kind,
            )
        rows = entry.shape[0]
        target = np.frombuffer(out, np.uint8) if not isinstance(out, np.ndarray) else out
        if not isinstance(entry, Rearranged):
            for start in range(0, entry.nbytes, PIECE):
                stop = min(start + PIECE, entry.nbytes)
                yield Piece(entry.offset + start, stop - start, partial(_put, target[start:stop]))
            return
        row = entry.stored // rows
        if entry.shift:
            yield Piece(entry.offset, entry.stored, partial(self._put_shifted, entry, target))
            return
        unit = 16 if entry.layout == "rows16-1" else 1
        head = rows // entry.heads if entry.heads else 1
        step = math.lcm(unit, head)
        step = max(step, PIECE // row // step * step)
        per_unit = entry.nbytes // -(-rows // unit)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            part = target[start // unit * per_unit : -(-stop // unit) * per_unit]
            put = partial(put_in_order, entry, out=part)
            yield Piece(entry.offset + start * row, (stop - start) * row, put)

    def _put_shifted(self, entry: Rearranged, target: Any, data: Any) -> None:
        import numpy as np

        numbers = self._in_our_order(entry.name, data, entry.shape[0])
        target[...] = _stored(numbers, entry.kind).view(np.uint8).reshape(-1)

    def values(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        """Rows `start`..`stop` of a tensor of any type as f32, in our order. Heads are not cut."""
        entry = self._known(name)
        return self._numbers(name, start, entry.shape[0] if stop is None else stop)

    def _numbers(self, name: str, start: int, stop: int) -> F32:
        entry, place = self.tensors[name], self.places[name]
        held = self.file_format.tensors[place.name]
        row = held.nbytes // place.rows
        with self.reader() as read:
            data = read(held.offset + (place.first + start) * row, (stop - start) * row)
        if place.heads:
            head = entry.shape[0] // place.heads
            if start % head or stop % head:
                raise ValueError(f"rows {start}..{stop} of {name} cut a head of {head}")
        return self._in_our_order(name, data, stop - start)

    def _in_our_order(self, name: str, data: Any, rows: int) -> F32:
        """Whole rows (whole heads) of a tensor as they lie in the file, as f32 in our order."""
        from haversack.formats._gguf_blocks import dequantize

        entry, place = self.tensors[name], self.places[name]
        kind = self.file_format.tensors[place.name].kind
        found = dequantize(kind, data, (rows, *entry.shape[1:]))
        if place.heads:
            found = found[head_order(rows, entry.shape[0] // place.heads)]
        if place.shift:
            import numpy as np

            found = found - np.float32(place.shift)
        return found

    def _known(self, name: str) -> TensorEntry:
        entry = self.tensors.get(name)
        if entry is None:
            nearest = nearest_name(name, self.tensors)
            raise UserError(
                f"{self.path} holds no tensor {name}.", field="tensor", given=name, nearest=nearest
            )
        return entry

    @contextmanager
    def reader(self) -> Iterator[Callable[[int, int], Any]]:
        """See `RearrangingSource`; copy and file are not resident together."""
        try:
            with self.path.open("rb", buffering=0) as file:
                yield partial(self._read, file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be read: {error.strerror}.", field="model", given=str(self.path)
            ) from error

    def _read(self, descriptor: int, offset: int, count: int) -> Any:
        data = os.pread(descriptor, count, offset)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, offset, count, os.POSIX_FADV_DONTNEED)
        if len(data) != count:
            raise DamagedFileError(self.path, f"it ends at byte {offset + len(data)}")
        return data

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the metadata. Raises UserError when there is none or its kind is not known."""
        from haversack.models._gguf_tokenizer import tokenizer

        return tokenizer(self.file_format)

    @property
    def tokenizer_nbytes(self) -> int:
        """Bytes that rebuilding the tokenizer takes at its peak, its library included: from the metadata's
        own, as measured; pieces with scores have their merges found first."""
        found = self.file_format.metadata
        arrays = [found.get(f"tokenizer.ggml.{key}") for key in ("tokens", "merges")]
        listed = [array for array in arrays if isinstance(array, GgufArray)]
        pieces = found.get("tokenizer.ggml.model") == "llama"
        whole = found.get("tokenizer.huggingface.json")
        return (
            (8 << 20)
            + sum(array.nbytes for array in listed) * (40 if pieces else 14)
            + (200 * listed[0].count if listed else 0)
            + (10 * len(whole) if isinstance(whole, str) else 0)
        )

    @cached_property
    def chat_template(self) -> str | None:
        """The chat template of the metadata."""
        found = self.file_format.metadata.get("tokenizer.chat_template")
        return found if isinstance(found, str) else None

    def read_file(self, name: str) -> Any:
        """tokenizer.json or chat_template.jinja as bytes, made from the metadata. Raises UserError when there
        is none of that name."""
        if name == "tokenizer.json":
            from haversack.models._gguf_tokenizer import tokenizer_json

            return tokenizer_json(self.file_format)
        if name == "chat_template.jinja" and self.chat_template is not None:
            return self.chat_template.encode()
        raise UserError(f"{self.path} holds no file {name}.", field="file", given=name)

    def texts(self) -> dict[str, Any]:
        """What lies beside the weights of a checkpoint: tokenizer.json and, where there is one, the chat
        template."""
        names = ("tokenizer.json", *(("chat_template.jinja",) if self.chat_template is not None else ()))
        return {name: self.read_file(name) for name in names}

    def file(self, name: str) -> Path | None:
        """Another file beside the weights: a GGUF file has none."""
        return None


def counted(names: list[str], kinds: Iterable[str]) -> str:
    """`3 tensors of the types q4_k, q6_k (blk.0.attn_q.weight, ...)`."""
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    types = ", ".join(sorted({kind.upper() for kind in kinds}))
    noun = "tensor" if len(names) == 1 else "tensors"
    return f"{len(names)} {noun}{f' of type {types}' if types else ''} ({shown})"


def _put(target: Any, data: Any) -> None:
    import numpy as np

    target[...] = np.frombuffer(data, np.uint8)


def _stored(values: F32, kind: str) -> Any:

    from haversack.kernels._matrix import to_bf16

    if kind == "bf16":
        return to_bf16(values)
    return values.astype("<f4" if kind == "f32" else "<f2")
