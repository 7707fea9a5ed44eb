"""What a split network learns from: made pictures, a folder with COCO's annotations, or a folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, MissingExtraError, UserError
from haversack.models.vision._average_precision import Truth

U8 = NDArray[np.uint8]
MADE, MADE_HELD = 3000, 200
HELD_SHARE = 0.15


@dataclass(frozen=True)
class SplitData:
    """Pictures u8 [n, side, side, 3]. Of a detector `truth` says what is on each; of a classifier `labels`
    [n]. `categories`: the number of each class in COCO's annotations."""

    task: str
    classes: tuple[str, ...]
    pictures: U8
    truth: tuple[Truth, ...] = ()
    labels: NDArray[np.int64] | None = None
    categories: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    def part(self, rows: NDArray[np.int64]) -> SplitData:
        """These rows alone."""
        truth = tuple(self.truth[at] for at in rows) if self.truth else ()
        labels = None if self.labels is None else self.labels[rows]
        return SplitData(self.task, self.classes, self.pictures[rows], truth, labels, self.categories)

    def divided(self, seed: int, share: float = HELD_SHARE) -> tuple[SplitData, SplitData]:
        """(what is learned from, what is held out). Raises UserError for fewer than 20 pictures."""
        if len(self) < 20:
            raise UserError(
                f"{len(self)} pictures are too few to learn from; give 20 and more.",
                field="data",
                given=len(self),
            )
        order = np.random.default_rng([seed, 5]).permutation(len(self))
        held = max(4, int(share * len(self)))
        return self.part(order[held:]), self.part(order[:held])


def made(count: int, seed: int, part: str = "train") -> SplitData:
    """Pictures of models/vision/_scenes.py."""
    from haversack.models.vision._scenes import CLASSES, scenes

    found = scenes(count, seed, part)
    truth = tuple(Truth(boxes, labels) for boxes, labels in zip(found.boxes, found.labels, strict=True))
    return SplitData("detect", CLASSES, found.pictures, truth)


def digits(side: int = 96) -> tuple[SplitData, SplitData]:
    """scikit-learn's digits, enlarged: (three quarters, the others)."""
    from sklearn.datasets import load_digits

    from haversack.formats.pictures import fitted

    found = load_digits()
    small = (found.images * 15.9).astype(np.uint8)[..., None].repeat(3, 3)
    whole = SplitData(
        "classify", tuple("0123456789"), fitted(small, side, side), (), found.target.astype(np.int64)
    )
    held = np.arange(len(whole)) % 4 == 0
    return whole.part(np.flatnonzero(~held)), whole.part(np.flatnonzero(held))


def read_data(folder: Path, annotations: Path | None, side: int) -> SplitData:
    """A folder of pictures with COCO's annotations (a detector), or one with a folder a class."""
    if annotations is None:
        from haversack.formats import pictures

        found = pictures.read_folder(folder)
        rows = [pictures.read_picture(path, side, side) for path in found.files]
        return SplitData("classify", found.classes, np.stack(rows), (), np.array(found.labels, np.int64))
    from haversack.formats.coco import read_coco

    held = read_coco(annotations)
    if not len(held.images):
        raise UserError(f"{annotations} names no pictures.", field="annotations", given=str(annotations))
    shown, truth = [], []
    for image in held.images:
        picture, scale = boxed(folder / image.file, side)
        shown.append(picture)
        truth.append(Truth(image.boxes * np.float32(scale), image.labels, image.crowd))
    return SplitData("detect", held.classes, np.stack(shown), tuple(truth), None, held.categories)


def boxed(path: Path, side: int) -> tuple[U8, float]:
    """The whole picture in the upper left corner of a grey square of `side`, and by what it was scaled."""
    from haversack.formats.pictures import read_picture

    width, height = _size(path)
    scale = side / max(width, height)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = np.full((side, side, 3), 128, np.uint8)
    canvas[:high, :wide] = read_picture(path, high, wide)
    return canvas, scale


def _size(path: Path) -> tuple[int, int]:
    """Width and height of a picture as it is seen, turned as its EXIF says."""
    if not path.is_file():
        raise UserError(f"there is no picture {path}.", field="data", given=str(path))
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError("reading pictures", "Pillow", "vision") from error
    try:
        with Image.open(path) as opened:
            found = ImageOps.exif_transpose(opened).size
    except Exception as error:  # Pillow's readers raise what they like
        raise DamagedFileError(path, "it is no picture", field="data") from error
    return found


def fit_frame(picture: U8, side: int) -> U8:
    """A camera's frame u8 [h, w, 3] in the upper left corner of a grey square of `side`."""
    height, width = picture.shape[:2]
    if (height, width) == (side, side):
        return picture
    from haversack.formats.pictures import fitted

    scale = side / max(width, height)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = np.full((side, side, 3), 128, np.uint8)
    canvas[:high, :wide] = fitted(picture[None], high, wide)[0]
    return canvas


def boxes_of(data: SplitData) -> tuple[Sequence[NDArray[np.float32]], Sequence[NDArray[np.int64]]]:
    """Boxes and class numbers of each picture, without crowds."""
    boxes, labels = [], []
    for one in data.truth:
        kept = slice(None) if one.crowd is None else ~one.crowd
        boxes.append(one.boxes[kept])
        labels.append(one.labels[kept])
    return boxes, labels
