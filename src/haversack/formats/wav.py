"""WAV files (RIFF WAVE): whole numbers of 8, 16, 24 or 32 bits and floats of 32 or 64, any number of
channels.

A header is read under limits before any sample; what it promises is held against the file's size. Channels
are averaged a piece at a time, so that a file is never in memory twice.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError, UserError

F32 = npt.NDArray[np.float32]

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
KNOWN = {2: "ADPCM", 6: "A-law", 7: "mu-law", 0x55: "MP3"}
BITS = {PCM: (8, 16, 24, 32), FLOAT: (32, 64)}
MOST_CHUNKS = 4096
MOST_CHANNELS = 256
RATES = (100, 768_000)
UNKNOWN_SIZE = 0xFFFFFFFF
PIECE = 1 << 16  # frames read at once
# The rest of the identifier of a format that is named by its first two bytes.
SUBFORMAT = bytes.fromhex("000000001000800000aa00389b71")


@dataclass(frozen=True)
class Layout:
    """How the samples of a file lie: `frames` of `channels` numbers from byte `offset` on."""

    coding: int
    bits: int
    channels: int
    rate: int
    offset: int
    frames: int

    @property
    def frame_nbytes(self) -> int:
        """Bytes of one number of every channel."""
        return self.channels * self.bits // 8


def is_wav(beginning: bytes) -> bool:
    """True for the first 12 bytes of a WAV file."""
    return beginning[:4] == b"RIFF" and beginning[8:12] == b"WAVE"


def read_layout(file: IO[bytes], path: Path, size: int) -> Layout:
    """The layout that the header of `file`, `size` bytes long, describes.

    Raises DamagedFileError where it contradicts itself or the file, UserError for a coding that is not read.
    """
    beginning = file.read(12)
    if not is_wav(beginning):
        raise DamagedFileError(path, "it does not begin as a WAV file")
    form: tuple[int, int, int, int] | None = None
    for _ in range(MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            missing = "samples" if form is not None else "description of its samples"
            raise DamagedFileError(path, f"it ends before the {missing}")
        name, nbytes = head[:4], struct.unpack("<I", head[4:])[0]
        at = file.tell()
        if name == b"data":
            if form is None:
                raise DamagedFileError(path, "its samples come before their description")
            return _layout(path, form, at, size - at if nbytes == UNKNOWN_SIZE else nbytes, size)
        if at + nbytes > size:
            raise DamagedFileError(path, f"its part {_shown(name)} ends behind the file")
        if name == b"fmt ":
            form = _form(path, file.read(min(nbytes, 40)))
        file.seek(at + nbytes + nbytes % 2)
    raise DamagedFileError(path, f"it has more than {MOST_CHUNKS} parts before its samples")


def _shown(name: bytes) -> str:
    return repr(name.decode("latin-1"))


def _form(path: Path, data: bytes) -> tuple[int, int, int, int]:
    """(coding, bits, channels, rate) of a `fmt ` part."""
    if len(data) < 16:
        raise DamagedFileError(path, f"the description of its samples has {len(data)} bytes, not 16")
    coding, channels, rate, _, align, bits = struct.unpack("<HHIIHH", data[:16])
    if coding == EXTENSIBLE:
        if len(data) < 40 or data[26:40] != SUBFORMAT:
            raise DamagedFileError(path, "its extensible description names no format")
        coding = struct.unpack("<H", data[24:26])[0]
    if coding not in BITS:
        named = KNOWN.get(coding, f"format {coding}")
        raise UserError(
            f"{path} holds {named} samples, which are not read (allowed PCM and float); convert it to 16-bit "
            "PCM.",
            field="audio",
            given=named,
            nearest="PCM",
        )
    if bits not in BITS[coding]:
        allowed = ", ".join(map(str, BITS[coding]))
        raise UserError(
            f"{path} has samples of {bits} bits, which are not read (allowed {allowed}).",
            field="audio",
            given=bits,
            nearest=min(BITS[coding], key=lambda known: abs(known - bits)),
        )
    if not 1 <= channels <= MOST_CHANNELS:
        raise DamagedFileError(path, f"it says that it has {channels} channels")
    if not RATES[0] <= rate <= RATES[1]:
        raise DamagedFileError(path, f"it says that it has {rate} samples a second")
    if align != channels * bits // 8:
        raise DamagedFileError(path, f"{channels} channels of {bits} bits do not take {align} bytes")
    return coding, bits, channels, rate


def _layout(path: Path, form: tuple[int, int, int, int], offset: int, nbytes: int, size: int) -> Layout:
    coding, bits, channels, rate = form
    if offset + nbytes > size:
        raise DamagedFileError(path, f"{nbytes} bytes of samples are promised and {size - offset} are there")
    frame = channels * bits // 8
    if nbytes % frame:
        raise DamagedFileError(path, f"its last sample is cut ({nbytes} bytes in frames of {frame})")
    return Layout(coding, bits, channels, rate, offset, nbytes // frame)


def read_wav(path: str | os.PathLike[str], longest_s: float) -> tuple[F32, Layout]:
    """Samples f32 [n] in -1..1, channels averaged, and their layout.

    Raises UserError for a file that cannot be read, that is empty, or that lasts longer than `longest_s`;
    DamagedFileError for one that does not hold.
    """
    source = Path(path)
    try:
        with source.open("rb") as file:
            layout = read_layout(file, source, source.stat().st_size)
            check_length(source, layout.frames, layout.rate, longest_s)
            file.seek(layout.offset)
            samples = np.empty(layout.frames, np.float32)
            for start in range(0, layout.frames, PIECE):
                stop = min(start + PIECE, layout.frames)
                data = file.read((stop - start) * layout.frame_nbytes)
                if len(data) != (stop - start) * layout.frame_nbytes:
                    raise DamagedFileError(source, "it ends early")
                numbers = decode(data, layout.coding, layout.bits).reshape(-1, layout.channels)
                samples[start:stop] = numbers.mean(axis=1, dtype=np.float32)
    except OSError as error:
        raise UserError(
            f"{source} cannot be read: {error.strerror}.", field="audio", given=str(source)
        ) from error
    if not np.isfinite(samples).all():
        raise DamagedFileError(source, "it holds samples that are not finite")
    return samples, layout


def check_length(path: Path, frames: int, rate: int, longest_s: float) -> None:
    """Raises UserError for a file without samples, and for one longer than `longest_s` seconds."""
    if frames == 0:
        raise UserError(f"{path} is empty: it holds no samples.", field="audio", given=str(path))
    if frames / rate > longest_s:
        raise UserError(
            f"{path} lasts {frames / rate:.0f} s, at most {longest_s:.0f} s are read; cut it into parts.",
            field="audio",
            given=round(frames / rate, 3),
            nearest=longest_s,
        )


def decode(data: bytes, coding: int, bits: int) -> Any:
    """Numbers of `bits` bits as floats in -1..1, f32 [n]: unsigned at 8 bits, signed above, or floats."""
    if coding == FLOAT:
        return np.frombuffer(data, "<f4" if bits == 32 else "<f8").astype(np.float32)
    if bits == 8:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    if bits == 24:
        triples = np.frombuffer(data, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(triples), 4), np.uint8)
        wide[:, 1:] = triples
        return (wide.view("<i4").reshape(-1) >> 8).astype(np.float32) / np.float32(1 << 23)
    whole = np.frombuffer(data, "<i2" if bits == 16 else "<i4")
    return (whole / np.float64(1 << (bits - 1))).astype(np.float32)


def write_wav(path: str | os.PathLike[str], samples: F32, rate: int) -> None:
    """Write samples f32 [n] in -1..1 as 16-bit PCM, one channel; what is beyond is clipped."""
    whole = np.clip(np.rint(np.asarray(samples, np.float64) * 32768), -32768, 32767).astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", PCM, 1, rate, 2 * rate, 2, 16)
    head = b"RIFF" + struct.pack("<I", 36 + len(whole)) + b"WAVEfmt " + struct.pack("<I", 16) + form
    Path(path).write_bytes(head + b"data" + struct.pack("<I", len(whole)) + whole)
