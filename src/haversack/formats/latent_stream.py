"""What a sensor sends of a picture: small maps of 8-bit numbers, coded scale by scale.

    "HVFR"  version u8  channels u8  height u16  width u16  id u32  chunk...  CRC-32 u32        big endian

`id` names the encoder; height and width are the picture's own, before its sides were filled up to multiples
of the coarsest patch. A chunk is one scale, coarsest first: four bytes of length, whose upper four bits name
the coder, then the coded map [channels * rows, columns] of values from -127 to 127. Coders: `stored`, `range`
(a static distribution for each channel, which both sides have), `jpeg-ls` (ISO 14495). Range coding is
constriction's, JPEG-LS is CharLS's; extra codec.

Every number is checked before memory is taken for what it promises.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, MissingExtraError, not_allowed

I8 = NDArray[np.int8]
I64 = NDArray[np.int64]

MAGIC, VERSION = b"HVFR", 1
HEAD = struct.Struct(">4sBBHHI")
CODERS = ("stored", "range", "jpeg-ls")
LARGEST = 127
"""Of a code: they are symmetric, -128 is none."""
PIXELS_MOST = 1 << 26
"""Of a picture that a stream may promise."""
SIDE_MOST = 65_535


@dataclass(frozen=True)
class Stream:
    """`maps`: one a scale, i8 [channels, rows, columns], coarsest first; `height` and `width` of the picture;
    `encoder`: 32 bits that name what made them."""

    height: int
    width: int
    encoder: int
    maps: tuple[I8, ...]

    @property
    def channels(self) -> int:
        return sum(len(one) for one in self.maps)

    def first(self, channels: int) -> Stream:
        """The first `channels` alone: any such prefix is a code of its own. Raises UserError for more than
        there are."""
        if not 1 <= channels <= self.channels:
            raise not_allowed("channels", channels, range(1, self.channels + 1))
        kept, left = [], channels
        for one in self.maps:
            if left > 0:
                kept.append(one[:left])
                left -= len(one)
        return Stream(self.height, self.width, self.encoder, tuple(kept))


def padded_sides(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Sides filled up to multiples."""
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def write_stream(stream: Stream, tables: Sequence[I64] | None = None, coder: str = "smallest") -> bytes:
    """The bytes of a stream. `tables`: counts [255] for each channel, for the range coder. `coder` is one of
    CODERS, or `smallest`, which takes for each scale whatever is shortest. Raises UserError for another
    name, MissingExtraError where a coder's library is absent."""
    if coder not in (*CODERS, "smallest"):
        raise not_allowed("coder", coder, (*CODERS, "smallest"))
    out = [HEAD.pack(MAGIC, VERSION, stream.channels, stream.height, stream.width, stream.encoder)]
    first = 0
    for one in stream.maps:
        own = None if tables is None else tables[first : first + len(one)]
        first += len(one)
        name, data = _coded(np.ascontiguousarray(one), own, coder)
        if len(data) >> 28:
            raise ValueError("a scale of a picture does not fit into its chunk")
        out += [struct.pack(">I", CODERS.index(name) << 28 | len(data)), data]
    body = b"".join(out)
    return body + struct.pack(">I", zlib.crc32(body))


def read_header(data: bytes, name: str = "the stream") -> tuple[int, int, int, int]:
    """(channels, height, width, encoder) of a stream. Raises DamagedFileError."""
    if len(data) < HEAD.size + 4 or data[:4] != MAGIC:
        raise DamagedFileError(name, "it does not begin as a stream of latents", field="stream")
    _, version, channels, height, width, encoder = HEAD.unpack_from(data)
    if version != VERSION:
        raise DamagedFileError(name, f"it is of version {version}, this program reads {VERSION}")
    if not channels or not height or not width or height * width > PIXELS_MOST:
        raise DamagedFileError(name, f"it promises {channels} channels of {height} x {width} pixels")
    return channels, height, width, encoder


def read_stream(
    data: bytes, patches: Sequence[int], tables: Sequence[I64] | None = None, name: str = "the stream"
) -> Stream:
    """The maps of a stream. `patches`: of each channel that its encoder has, coarse to fine. Raises
    DamagedFileError for whatever does not hold, UserError for more channels than the encoder has."""
    channels, height, width, encoder = read_header(data, name)
    if channels > len(patches):
        raise not_allowed("channels", channels, range(1, len(patches) + 1))
    if zlib.crc32(data[:-4]) != struct.unpack(">I", data[-4:])[0]:
        raise DamagedFileError(name, "its checksum does not match: it was altered or truncated")
    high, wide = padded_sides(height, width, max(patches))
    own = list(patches[:channels])
    maps, at, first = [], HEAD.size, 0
    for patch in dict.fromkeys(own):
        count = own.count(patch)
        if at + 4 > len(data) - 4:
            raise DamagedFileError(name, f"it ends before the scale of patches of {patch}")
        word = struct.unpack_from(">I", data, at)[0]
        coder, length = word >> 28, word & 0x0FFF_FFFF
        at += 4
        if coder >= len(CODERS) or at + length > len(data) - 4:
            raise DamagedFileError(name, f"the chunk at byte {at - 4} overruns it or has no known coder")
        shape = (count, high // patch, wide // patch)
        try:
            maps.append(
                _decoded(
                    CODERS[coder],
                    data[at : at + length],
                    shape,
                    None if tables is None else tables[first : first + count],
                )
            )
        except ValueError as error:
            raise DamagedFileError(name, f"the chunk at byte {at - 4} holds no map ({error})") from error
        at += length
        first += count
    if at != len(data) - 4:
        raise DamagedFileError(name, f"{len(data) - 4 - at} bytes belong to nothing")
    return Stream(height, width, encoder, tuple(maps))


def table_of(codes: I8) -> I64:
    """Counts [255] of a channel's values -127 .. 127, smoothed so that every value can be coded."""
    counts = np.bincount(codes.ravel().astype(np.int64) + LARGEST, minlength=2 * LARGEST + 1)
    values = np.arange(-LARGEST, LARGEST + 1)
    spread = max(float(np.abs(codes.astype(np.float64)).mean()), 0.05)
    smooth = np.exp(-np.abs(values) / spread)
    share = 0.98 * counts / max(1, counts.sum()) + 0.02 * smooth / smooth.sum()
    found: I64 = np.maximum(1, np.rint(share * 60_000)).astype(np.int64)
    return found


def _coded(one: I8, tables: Sequence[I64] | None, coder: str) -> tuple[str, bytes]:
    found: list[tuple[str, bytes]] = []
    if coder != "range":  # also in the place of JPEG-LS where that has no room
        found.append(("stored", (one.astype(np.int16) + LARGEST).astype(np.uint8).tobytes()))
    if coder == "range" or (coder == "smallest" and tables is not None):
        found.append(("range", _range_coded(one, tables)))
    if coder in ("jpeg-ls", "smallest"):
        found += [("jpeg-ls", data) for data in _jpeg_ls(one)]
    if coder == "jpeg-ls":
        return found[-1]
    return min(found, key=lambda each: len(each[1]))


def _jpeg_ls(one: I8) -> list[bytes]:
    """The coded map, or nothing where the library cannot: a map so small that its code is longer, sides
    beyond the format's."""
    flat = (one.astype(np.int16) + LARGEST).astype(np.uint8).reshape(-1, one.shape[2])
    library = _library("jpeg_ls", "pyjpegls")
    if max(flat.shape) > SIDE_MOST:
        return []
    try:
        return [bytes(library.encode_array(flat))]
    except RuntimeError:
        return []


def _decoded(coder: str, data: bytes, shape: tuple[int, int, int], tables: Sequence[I64] | None) -> I8:
    channels, rows, columns = shape
    if coder == "range":
        return _range_decoded(data, shape, tables)
    if coder == "stored":
        if len(data) != channels * rows * columns:
            raise ValueError(f"{len(data)} bytes instead of {channels * rows * columns}")
        flat = np.frombuffer(data, np.uint8)
    else:
        if _frame(data) != (channels * rows, columns):
            raise ValueError("its JPEG-LS frame has other sides")
        try:
            flat = np.asarray(_library("jpeg_ls", "pyjpegls").decode(np.frombuffer(data, np.uint8)))
        except Exception as error:  # whatever the library makes of broken data
            raise ValueError(str(error)[:120]) from error
    if flat.size != channels * rows * columns or flat.dtype != np.uint8 or (flat > 2 * LARGEST).any():
        raise ValueError("a value is none of -127 to 127")
    return (flat.astype(np.int16) - LARGEST).astype(np.int8).reshape(shape)


def _frame(data: bytes) -> tuple[int, int]:
    """(rows, columns) of a JPEG-LS frame of one component of up to 8 bits, else ValueError: read before the
    library takes memory for it."""
    if len(data) < 15 or data[:4] != b"\xff\xd8\xff\xf7" or not 2 <= data[6] <= 8 or data[11] != 1:
        raise ValueError("it begins as no JPEG-LS frame of one component")
    rows, columns = struct.unpack_from(">HH", data, 7)
    return rows, columns


def _models(tables: Sequence[I64] | None, channels: int) -> list[Any]:
    if tables is None or len(tables) != channels:
        raise ValueError("the range coder needs the encoder's distributions")
    make: Callable[..., Any] = _library("constriction", "constriction").stream.model.Categorical
    return [make((table / table.sum()).astype(np.float64), perfect=False) for table in tables]


def _range_coded(one: I8, tables: Sequence[I64] | None) -> bytes:
    models = _models(tables, len(one))
    coder = _library("constriction", "constriction").stream.queue.RangeEncoder()
    for channel, model in zip(one, models, strict=True):
        coder.encode((channel.ravel().astype(np.int32) + LARGEST), model)
    return bytes(coder.get_compressed().astype("<u4").tobytes())


def _range_decoded(data: bytes, shape: tuple[int, int, int], tables: Sequence[I64] | None) -> I8:
    channels, rows, columns = shape
    models = _models(tables, channels)
    if len(data) % 4:
        raise ValueError("it is cut within a word")
    words = np.frombuffer(data, "<u4").astype(np.uint32)
    coder = _library("constriction", "constriction").stream.queue.RangeDecoder(words)
    out = np.empty((channels, rows * columns), np.int8)
    for channel, model in zip(out, models, strict=True):
        try:
            channel[:] = coder.decode(model, rows * columns) - LARGEST
        except BaseException as error:  # a panic of the library is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise ValueError("its words decode to nothing") from error
    return out.reshape(shape)


def _library(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError("coding pictures", package, "codec") from error
