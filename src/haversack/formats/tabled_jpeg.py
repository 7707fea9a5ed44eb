"""JPEG files with quantization tables of one's own, whose three components are used as they are.

Written through Pillow as baseline JPEG, 4:4:4: three 8-bit planes go into the places of Y, Cb and Cr without
any change of colours, and each has its own table. Any viewer opens such a file, with wrong colours. A comment
names the colour pair that undoes them:

    haversack codec 1 PAIR task=NAME

`PAIR` is 16 hexadecimal digits. Reading asks the decoder for the planes as they are.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, MissingExtraError, UserError
from haversack.formats.latent_stream import PIXELS_MOST

U8 = NDArray[np.uint8]
COMMENT = re.compile(rb"haversack codec (\d{1,4}) ([0-9a-f]{16})(?: task=([!-~]{1,80}))?")
VERSION = 1
SIDE_MOST = 65_500


@dataclass(frozen=True)
class TabledJpeg:
    """`planes` u8 [h, w, 3] in the places of Y, Cb, Cr; `tables` u8 [3, 64] in raster order; `pair` and
    `task` as the comment has them, empty without one."""

    planes: U8
    tables: U8
    pair: str
    task: str


def write_jpeg(planes: U8, tables: NDArray[Any], pair: str, task: str = "") -> bytes:
    """A JPEG file of planes u8 [h, w, 3] under tables [3, 64] or [3, 8, 8], entries 1 to 255, raster order.

    Raises UserError for entries out of bounds, for sides that JPEG has not, for a pair or task that the
    comment cannot hold. The tables are read back and compared.
    """
    found = np.asarray(tables)
    if found.size != 192 or (found != np.rint(found)).any() or (found < 1).any() or (found > 255).any():
        raise UserError(
            "a quantization table has 64 whole numbers from 1 to 255, and there are three tables.",
            field="tables",
            given=list(found.shape),
        )
    if planes.ndim != 3 or planes.shape[2] != 3 or planes.dtype != np.uint8 or not planes.size:
        raise UserError("a picture has three planes of bytes.", field="picture", given=list(planes.shape))
    if max(planes.shape[:2]) > SIDE_MOST:
        raise UserError(f"JPEG has sides of at most {SIDE_MOST}.", field="picture", given=planes.shape[:2])
    comment = f"haversack codec {VERSION} {pair}" + (f" task={task}" if task else "")
    if not COMMENT.fullmatch(comment.encode()):
        raise UserError("a task's name has 1 to 80 printable letters.", field="task", given=task)
    wanted = found.astype(int).reshape(3, 64)
    out = io.BytesIO()
    picture = _pillow().fromarray(np.ascontiguousarray(planes), "YCbCr")
    picture.save(
        out,
        "JPEG",
        qtables=[row.tolist() for row in wanted],
        subsampling=0,
        optimize=True,
        comment=comment.encode(),
    )
    data = out.getvalue()
    with _pillow().open(io.BytesIO(data)) as opened:
        if [list(opened.quantization[at]) for at in range(3)] != wanted.tolist():
            raise RuntimeError("the JPEG writer changed the quantization tables")
    return data


def read_jpeg(data: bytes, name: str = "the JPEG") -> TabledJpeg:
    """The planes, tables and comment of a JPEG file, as they are stored. Raises DamagedFileError for what is
    no whole JPEG of three components at 4:4:4, for tables with an entry 0, and for too many pixels."""
    module = _pillow()
    try:
        with module.open(io.BytesIO(data), formats=("JPEG",)) as opened:
            if opened.width * opened.height > PIXELS_MOST:
                raise DamagedFileError(name, f"it claims {opened.width} x {opened.height} pixels")
            layers = getattr(opened, "layer", [])
            if opened.mode not in ("RGB", "YCbCr") or any((one[1], one[2]) != (1, 1) for one in layers):
                raise DamagedFileError(name, "it is not of three components at full size (4:4:4)")
            tables = np.array([opened.quantization.get(one[3], [0] * 64) for one in layers])
            if tables.shape != (3, 64) or (tables < 1).any() or (tables > 255).any():
                raise DamagedFileError(name, "its tables are not three of 64 entries from 1 to 255")
            comment = opened.info.get("comment", b"")
            opened.draft("YCbCr", opened.size)
            planes = np.asarray(opened)
            if opened.mode != "YCbCr":
                raise DamagedFileError(name, "its components cannot be read as they are")
    except DamagedFileError:
        raise
    except module.UnidentifiedImageError as error:
        raise DamagedFileError(name, "it is no JPEG") from error
    except Exception as error:  # Pillow's readers raise what they like
        raise DamagedFileError(name, f"it is no whole JPEG ({' '.join(str(error).split())[:120]})") from error
    matched = COMMENT.fullmatch(bytes(comment))
    if matched and int(matched[1]) != VERSION:
        raise DamagedFileError(name, f"its comment is of version {int(matched[1])}")
    pair, task = (matched[2].decode(), (matched[3] or b"").decode()) if matched else ("", "")
    return TabledJpeg(planes, tables.astype(np.uint8), pair, task)


def scan_nbytes(data: bytes) -> int:
    """Bytes of a JPEG behind its headers: what grows with the picture. Raises DamagedFileError for what is
    none."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        at += 2 + length
        if data[at - length - 1] == 0xDA:
            return len(data) - at
    raise DamagedFileError("the JPEG", "it has no scan")


def checked_tables(tables: Sequence[Any] | NDArray[Any]) -> U8:
    """Tables [.., 3, 8, 8] as stored: rounded, within 1 to 255."""
    return np.clip(np.rint(np.asarray(tables, np.float64)), 1, 255).astype(np.uint8)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtraError("JPEG files", "Pillow", "codec") from error
    return Image
