"""Pictures in folders, one folder a class: which there are, and each as rows of bytes.

    FOLDER/cat/1.jpg, FOLDER/dog/1.jpg                          one set
    FOLDER/train/cat/1.jpg, FOLDER/test/cat/2.jpg               two parts, test (or val) held out

Pictures are read through Pillow (extra vision). Whatever its mode, a picture becomes RGB or grey of one
size: turned upright as its EXIF says, transparency laid over white, 16-bit values to 8, the shorter side
scaled and the middle cut out. A picture is damaged when not all of its pixels can be read.
"""

from __future__ import annotations

import errno
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core._files import (
    cache_folder,
    fingerprint,
    partial_path,
    put_in_place,
    remove,
    write_error,
)
from haversack.core.errors import DamagedFileError, MissingExtraError, UserError
from haversack.formats._row_files import HELD_OUT_NAMES, folders

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
ARCHIVES = (".tar.xz", ".tar.gz", ".tgz", ".tar", ".zip")
PIXELS_MOST = 200_000_000
"""Of one picture: a few bytes can claim any number of them."""
ARCHIVE_MOST = 64 << 30


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of `path`: `files` with the class number of each, in a fixed order; `held_out`: which of
    them the folder itself keeps apart (None where it does not)."""

    path: Path
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    held_out: tuple[bool, ...] | None

    def key(self, index: int) -> str:
        """What tells picture `index` from others wherever the folder lies."""
        return self.files[index].relative_to(self.path).as_posix()


def is_archive(path: Path) -> bool:
    """Whether `path` is named like a packed folder."""
    return path.is_file() and path.name.lower().endswith(ARCHIVES)


def read_folder(path: Path) -> PictureFolder:
    """The classes and pictures of the folder (or packed folder) `path`; no picture is opened.

    Raises UserError for a folder without classes, for a class without pictures and for a class of the
    held-out part that the other part lacks.
    """
    root = unpacked(path) if is_archive(path) else path
    if not root.is_dir():
        raise UserError(f"{path} is no folder of pictures.", field="data", given=str(path))
    root = _inside(root)
    parts = _parts(root)
    own = folders(parts[0])
    if not own:
        raise UserError(
            f"{path} has no folder with pictures in it; put the pictures of each class into a folder of "
            f"its name ({path.name}/cat/1.jpg).",
            field="data",
            given=str(path),
        )
    classes = tuple(folder.name for folder in own)
    files: list[Path] = []
    labels: list[int] = []
    held: list[bool] = []
    for number, part in enumerate(parts):
        for folder in folders(part):
            if folder.name not in classes:
                raise UserError(
                    f"{part.name} has the class {folder.name}, which {parts[0].name} has not "
                    f"(there: {shown(classes)}).",
                    field="data",
                    given=folder.name,
                )
            found = list(_pictures(folder))
            if not found and number == 0:
                raise UserError(
                    f"the class {folder.name} of {path} has no pictures ({', '.join(ENDINGS[:4])}, ...); "
                    "add some or remove the folder.",
                    field="data",
                    given=folder.name,
                )
            files += found
            labels += [classes.index(folder.name)] * len(found)
            held += [number == 1] * len(found)
    return PictureFolder(root, classes, tuple(files), tuple(labels), tuple(held) if len(parts) > 1 else None)


def read_picture(path: Path, height: int, width: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    """The picture as u8 [height, width, channels]; `channels` 3 is RGB, 1 grey.

    Raises DamagedFileError, naming the file, for one that cannot be read to its end, MissingExtraError
    without Pillow.
    """
    image_module = _pillow()
    from PIL import ImageFile, ImageOps

    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    mode = "RGB" if channels == 3 else "L"
    try:
        with image_module.open(path) as opened:
            if opened.width * opened.height > PIXELS_MOST:
                raise DamagedFileError(
                    path, f"it claims {opened.width} x {opened.height} pixels", field="data"
                )
            opened.draft(mode, (2 * width, 2 * height))  # JPEG alone: large ones are decoded smaller
            found = np.array(_sized(_flat(ImageOps.exif_transpose(opened), mode), height, width), np.uint8)
    except DamagedFileError:
        raise
    except image_module.UnidentifiedImageError as error:
        raise DamagedFileError(path, "it is no picture", field="data") from error
    except Exception as error:  # Pillow's readers raise what they like
        what = " ".join(str(error).split()) or type(error).__name__
        raise DamagedFileError(path, f"it is no whole picture ({what[:120]})", field="data") from error
    return found.reshape(height, width, channels)


def fitted(rows: npt.NDArray[np.uint8], height: int, width: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    """Pictures u8 [n, h, w, c], c 1 or 3, as u8 [n, height, width, channels], by `read_picture`'s rules;
    those that are so already are given back. Raises MissingExtraError without Pillow for others."""
    if rows.shape[1:] == (height, width, channels):
        return rows
    image_module = _pillow()
    mode = "RGB" if channels == 3 else "L"
    made = np.empty((len(rows), height, width, channels), np.uint8)
    for goal, row in zip(made, rows, strict=True):
        picture = image_module.fromarray(row if row.shape[2] == 3 else row[..., 0]).convert(mode)
        goal[...] = np.asarray(_sized(picture, height, width), np.uint8).reshape(goal.shape)
    return made


def unpacked(archive: Path) -> Path:
    """The folder of a packed one, unpacked once into the cache. Raises DamagedFileError for what is no
    archive, UserError for one that holds other things than files and folders."""
    state = archive.stat()
    goal = cache_folder() / "unpacked" / fingerprint(f"{archive.name} {state.st_size} {state.st_mtime_ns}")
    if goal.is_dir():
        return goal
    goal.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(goal)
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, partial)
        else:
            _unpack_tar(archive, partial)
        put_in_place(partial, goal)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise DamagedFileError(archive, f"it is no whole archive ({error})", field="data") from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # a zip whose places lie before its beginning
            raise DamagedFileError(archive, f"it is no whole archive ({error})", field="data") from error
        raise write_error(goal, error) from error
    finally:
        remove(partial)
    return goal


def _unpack_tar(archive: Path, goal: Path) -> None:
    with tarfile.open(archive) as packed:
        total = 0
        for member in packed:
            if not (member.isfile() or member.isdir()):
                raise UserError(
                    f"{archive} holds {member.name}, which is no file and no folder.",
                    field="data",
                    given=str(archive),
                )
            total += member.size
            if total > ARCHIVE_MOST:
                raise DamagedFileError(archive, "it unpacks to more than 64 GiB", field="data")
            packed.extract(member, goal, filter="data")


def _unpack_zip(archive: Path, goal: Path) -> None:
    """Without what macOS puts beside the files."""
    with zipfile.ZipFile(archive) as packed:
        members = [each for each in packed.infolist() if not each.filename.startswith("__MACOSX/")]
        if sum(each.file_size for each in members) > ARCHIVE_MOST:
            raise DamagedFileError(archive, "it unpacks to more than 64 GiB", field="data")
        for member in members:
            parts = member.filename.replace("\\", "/").split("/")
            link = member.external_attr >> 16 & 0o170000 == 0o120000
            if ".." in parts or member.filename.startswith("/") or link or member.flag_bits & 1:
                raise UserError(
                    f"{archive} holds {member.filename}, which is encrypted, lies outside or is no file and "
                    "no folder.",
                    field="data",
                    given=str(archive),
                )
            packed.extract(member, goal)


def shown(names: tuple[str, ...], most: int = 12) -> str:
    """Names as a sentence has them; many end in dots."""
    return ", ".join(names[:most]) + (f", ... ({len(names)})" if len(names) > most else "")


def _inside(root: Path) -> Path:
    """`root`, or the one folder in it that holds the classes or parts."""
    inside = folders(root)
    if len(inside) == 1 and folders(inside[0]) and not any(_own_pictures(inside[0])):
        return inside[0]
    return root


def _parts(root: Path) -> list[Path]:
    """The part that is learned from and, where there is one, the part that is held out."""
    by_name = {folder.name.lower(): folder for folder in folders(root)}
    train = by_name.get("train")
    held = next((by_name[name] for name in HELD_OUT_NAMES if name in by_name), None)
    if train is not None and folders(train):
        return [train] if held is None else [train, held]
    return [root]


def _own_pictures(folder: Path) -> Iterator[Path]:
    return (each for each in folder.iterdir() if each.suffix.lower() in ENDINGS)


def _pictures(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file():
            yield path


def _flat(picture: Any, mode: str) -> Any:
    """`picture` as 8-bit RGB or grey."""
    image_module = _pillow()
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture).astype(np.float64)
        if picture.mode != "F":
            values /= 257.0 if values.max(initial=0.0) > 255 else 1.0
        picture = image_module.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        over = picture.convert("RGBA")
        white = image_module.new("RGBA", over.size, (255, 255, 255, 255))
        picture = image_module.alpha_composite(white, over)
    return picture.convert(mode)


def _sized(picture: Any, height: int, width: int) -> Any:
    """The shorter side scaled, the middle cut out."""
    if picture.size == (width, height):
        return picture
    scale = max(width / picture.width, height / picture.height)
    box = (width / scale, height / scale)
    left, top = (picture.width - box[0]) / 2, (picture.height - box[1]) / 2
    cut = (left, top, left + box[0], top + box[1])
    return picture.resize((width, height), _pillow().Resampling.BILINEAR, box=cut)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtraError("reading pictures", "Pillow", "vision") from error
    return Image
