"""Sets of whole pictures to learn from: a folder of any depth (Kodak, LSDIR), WebDataset shards (ImageNet as
.tar: KEY.jpg beside KEY.cls), ADE20K's folders (images/PART beside annotations/PART).

Pictures come as RGB bytes of their own size, upright; no shard is unpacked.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.pictures import ENDINGS, PIXELS_MOST, _flat, _pillow

U8 = NDArray[np.uint8]
MEMBER_MOST = 256 << 20


@dataclass(frozen=True)
class Sample:
    """A picture u8 [h, w, 3] by its `key`; its class number, or the map of classes u8 [h, w] beside it."""

    key: str
    picture: U8
    label: int | None = None
    map: U8 | None = None


def whole_picture(source: Path | bytes, name: str) -> U8:
    """A picture as RGB bytes u8 [h, w, 3]. Raises DamagedFileError for what cannot be read to its end."""
    module = _pillow()
    from PIL import ImageOps

    try:
        with module.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            if opened.width * opened.height > PIXELS_MOST:
                raise DamagedFileError(
                    name, f"it claims {opened.width} x {opened.height} pixels", field="data"
                )
            return np.array(_flat(ImageOps.exif_transpose(opened), "RGB"), np.uint8)
    except DamagedFileError:
        raise
    except module.UnidentifiedImageError as error:
        raise DamagedFileError(name, "it is no picture", field="data") from error
    except Exception as error:  # Pillow's readers raise what they like
        what = " ".join(str(error).split()) or type(error).__name__
        raise DamagedFileError(name, f"it is no whole picture ({what[:120]})", field="data") from error


def picture_files(path: Path) -> list[Path]:
    """The pictures of a folder, of any depth, in a fixed order; a file stands for itself. Raises UserError
    where there are none."""
    if path.is_file():
        return [path]
    found = sorted(
        each
        for each in path.rglob("*")
        if each.suffix.lower() in ENDINGS and not each.name.startswith(".") and each.is_file()
    )
    if not found:
        raise UserError(
            f"{path} holds no pictures ({', '.join(ENDINGS[:4])}, ...).", field="data", given=str(path)
        )
    return found


def samples(path: Path) -> Iterator[Sample]:
    """The set at `path`, picture by picture: a shard, a folder of shards, ADE20K, or any folder."""
    shards = [path] if path.suffix == ".tar" and path.is_file() else sorted(path.glob("*.tar"))
    if shards:
        for shard in shards:
            yield from _shard(shard)
    elif (path / "images").is_dir() and (path / "annotations").is_dir():
        yield from _mapped(path)
    else:
        for file in picture_files(path):
            yield Sample(file.name, whole_picture(file, str(file)))


def _shard(path: Path) -> Iterator[Sample]:
    """KEY.jpg with KEY.cls, which stand beside one another in a shard."""
    held: dict[str, Any] = {}
    key = ""
    try:
        with tarfile.open(path, "r|*") as packed:
            for member in packed:
                if not member.isfile():
                    continue
                if member.size > MEMBER_MOST:
                    raise DamagedFileError(path, f"{member.name} has {member.size} bytes", field="data")
                name = PurePosixPath(member.name)
                stem, _, kind = name.name.partition(".")
                own = str(name.with_name(stem))
                if own != key:
                    yield from _joined(path, key, held)
                    key, held = own, {}
                file = packed.extractfile(member)
                held[f".{kind.lower()}"] = file.read() if file is not None else b""
            yield from _joined(path, key, held)
    except tarfile.TarError as error:
        raise DamagedFileError(path, f"it is no whole shard ({error})", field="data") from error


def _joined(path: Path, key: str, held: dict[str, bytes]) -> Iterator[Sample]:
    kind = next((each for each in held if each in ENDINGS), None)
    if kind is None:
        return
    label = held.get(".cls", b"").strip()
    if label and not (label.isdigit() and len(label) < 10):
        raise DamagedFileError(
            path, f"the class of {key} is {label[:20]!r}, which is no number", field="data"
        )
    yield Sample(key, whole_picture(held[kind], f"{path}:{key}{kind}"), int(label) if label else None)


def _mapped(path: Path) -> Iterator[Sample]:
    """ADE20K: 0 means nothing there, and becomes 255; the classes follow from 0."""
    for file in picture_files(path / "images"):
        inside = file.relative_to(path / "images").with_suffix(".png")
        other = path / "annotations" / inside
        if not other.is_file():
            raise UserError(f"{file} has no {other}.", field="data", given=str(other))
        with _pillow().open(other) as opened:
            classes = np.asarray(opened)
        picture = whole_picture(file, str(file))
        if classes.ndim != 2 or classes.shape != picture.shape[:2]:
            raise DamagedFileError(other, "it is no map of its picture's size", field="data")
        yield Sample(inside.as_posix(), picture, map=(classes.astype(np.int16) - 1).astype(np.uint8))
