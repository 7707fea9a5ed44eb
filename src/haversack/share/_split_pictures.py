"""Where a device's pictures come from: a camera, a video, a folder, one picture, or made ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, MissingExtraError, UserError
from haversack.share._split_data import boxed, fit_frame, made

U8 = NDArray[np.uint8]
VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi")


def pictures_of(source: str, side: int, seed: int = 0) -> Iterator[tuple[str, U8]]:
    """(name, u8 [side, side, 3]) one after the other: `cam` or `camN`, `made`, a folder, a video, a picture.

    Raises UserError for a source that there is not, MissingExtraError without PyAV for cameras and videos.
    """
    if source == "made":
        return _made(side, seed)
    if source.startswith("cam") and (source[3:].isdigit() or source == "cam"):
        device = Path(f"/dev/video{source[3:] or 0}")
        if not device.exists():
            raise UserError(f"there is no camera at {device}.", field="source", given=source)
        return _frames(str(device), side, source, camera=True)
    path = Path(source)
    if path.is_dir():
        return _folder(path, side)
    if not path.is_file():
        raise UserError(
            f"there is no {source}; give cam, a folder of pictures, a video, a picture, or made.",
            field="source",
            given=source,
        )
    if path.suffix.lower() in VIDEOS:
        return _frames(str(path), side, path.name, camera=False)
    return iter([(path.name, boxed(path, side)[0])])


def _made(side: int, seed: int) -> Iterator[tuple[str, U8]]:
    number = 0
    while True:
        for picture in made(32, 1_000_003 * (seed + 1) + number, "test").pictures:
            number += 1
            yield f"made {number}", fit_frame(picture, side)


def _folder(path: Path, side: int) -> Iterator[tuple[str, U8]]:
    from haversack.formats.pictures import ENDINGS

    found = [one for one in sorted(path.rglob("*")) if one.suffix.lower() in ENDINGS and one.is_file()]
    if not found:
        raise UserError(
            f"{path} holds no pictures ({', '.join(ENDINGS[:4])}, ...).", field="source", given=str(path)
        )
    return ((str(one.relative_to(path)), boxed(one, side)[0]) for one in found)


def _frames(place: str, side: int, name: str, *, camera: bool) -> Iterator[tuple[str, U8]]:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("reading a camera or a video", "PyAV", "collect") from error
    options: dict[str, Any] = {"format": "v4l2"} if camera else {}
    try:
        with av.open(place, **options) as container:
            for number, frame in enumerate(container.decode(video=0)):
                yield f"{name} {number + 1}", fit_frame(frame.to_ndarray(format="rgb24"), side)
    except (av.error.FFmpegError, IndexError) as error:
        raise DamagedFileError(place, f"it is no video that can be read ({error})", field="source") from error
