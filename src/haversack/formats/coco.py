"""COCO's annotations (`instances_*.json`): pictures, boxes, categories; and detections in its result format.

Source: COCO's data format as documented. A box is x, y, width, height in pixels. Category numbers may have
gaps; classes here are numbered in their order. Detections (`results.json`) are rows of image_id, category_id,
bbox and score.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, UserError

LARGEST = 1 << 30
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Detections:
    """Of one picture, the surest first: boxes f32 [m, 4] (x0, y0, x1, y1 in pixels), scores f32 [m], class
    numbers [m]."""

    boxes: F32
    scores: F32
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class CocoImage:
    """One picture: its number and file, size in pixels, boxes [m, 4] (x0, y0, x1, y1), class numbers [m], and
    which of them are crowds [m]."""

    id: int
    file: str
    width: int
    height: int
    boxes: F32
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True)
class Coco:
    """Annotations: class names, the category number of each, and the pictures."""

    classes: tuple[str, ...]
    categories: tuple[int, ...]
    images: tuple[CocoImage, ...]


def read_coco(path: str | os.PathLike[str]) -> Coco:
    """The annotations in a file. Raises UserError where it cannot be read, DamagedFileError for what is no
    such file, for a box that lies nowhere, and for numbers that name nothing."""
    place = Path(path)
    found = _json(place)
    if not isinstance(found, dict):
        raise DamagedFileError(place, "it is no table of images, annotations and categories")
    try:
        listed = sorted((int(each["id"]), str(each["name"])) for each in found["categories"])
        images = {int(each["id"]): each for each in found["images"]}
        rows: dict[int, list[tuple[F32, int, bool]]] = {number: [] for number in images}
        numbers = {number: at for at, (number, _) in enumerate(listed)}
        if len(numbers) != len(listed) or len(images) != len(found["images"]):
            raise ValueError("a number is given twice")
        for each in found.get("annotations", ()):
            rows[int(each["image_id"])].append(
                (_corners(each["bbox"]), numbers[int(each["category_id"])], bool(each.get("iscrowd", 0)))
            )
        made = tuple(_image(number, each, rows[number]) for number, each in images.items())
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedFileError(place, f"its entries do not fit together ({error!r:.120})") from error
    return Coco(tuple(name for _, name in listed), tuple(number for number, _ in listed), made)


def write_coco(path: str | os.PathLike[str], coco: Coco) -> None:
    """Write annotations that `read_coco` gives back."""
    annotations: list[dict[str, Any]] = []
    for image in coco.images:
        for box, label, crowd in zip(image.boxes, image.labels, image.crowd, strict=True):
            x0, y0, x1, y1 = (float(value) for value in box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.id,
                    "category_id": coco.categories[int(label)],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": int(crowd),
                }
            )
    record = {
        "images": [
            {"id": one.id, "file_name": one.file, "width": one.width, "height": one.height}
            for one in coco.images
        ],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name} for number, name in zip(coco.categories, coco.classes, strict=True)
        ],
    }
    Path(path).write_text(json.dumps(record), encoding="utf-8")


def result_rows(
    image_id: int, categories: tuple[int, ...], boxes: F32, scores: F32, labels: NDArray[np.int64]
) -> Iterable[Mapping[str, Any]]:
    """Detections of one picture as COCO's result files have them."""
    for box, score, label in zip(boxes, scores, labels, strict=True):
        x0, y0, x1, y1 = (round(float(value), 2) for value in box)
        yield {
            "image_id": image_id,
            "category_id": categories[int(label)],
            "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
            "score": round(float(score), 5),
        }


def read_results(path: str | os.PathLike[str], coco: Coco) -> list[Detections]:
    """The detections of a result file, picture by picture of `coco`, the surest first. Raises as
    `read_coco`."""
    place = Path(path)
    rows: dict[int, list[tuple[F32, float, int]]] = {image.id: [] for image in coco.images}
    numbers = {number: at for at, number in enumerate(coco.categories)}
    try:
        for each in _json(place):
            score = float(each["score"])
            if not math.isfinite(score):
                raise ValueError("a score is no number")
            rows[int(each["image_id"])].append(
                (_corners(each["bbox"]), score, numbers[int(each["category_id"])])
            )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedFileError(place, f"its entries do not fit together ({error!r:.120})") from error
    made = []
    for image in coco.images:
        own = sorted(rows[image.id], key=lambda row: -row[1])
        boxes = np.stack([row[0] for row in own]) if own else np.zeros((0, 4), np.float32)
        scores = np.array([row[1] for row in own], np.float32)
        made.append(Detections(boxes, scores, np.array([row[2] for row in own], np.int64)))
    return made


def _json(place: Path) -> Any:
    try:
        if place.stat().st_size > LARGEST:
            raise DamagedFileError(place, "it is longer than 1 GiB")
        return json.loads(place.read_bytes())
    except OSError as error:
        raise UserError(
            f"{place} cannot be read: {error.strerror}.", field="annotations", given=str(place)
        ) from error
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(place, "it is not JSON") from error


def _corners(box: Any) -> F32:
    x, y, wide, high = (float(value) for value in box)
    if not all(math.isfinite(value) for value in (x, y, wide, high)) or wide < 0 or high < 0:
        raise ValueError(f"the box {box} lies nowhere")
    return np.array([x, y, x + wide, y + high], np.float32)


def _image(number: int, each: Mapping[str, Any], rows: list[tuple[F32, int, bool]]) -> CocoImage:
    file = str(each["file_name"])
    if file.startswith(("/", "\\")) or ".." in Path(file).parts:
        raise ValueError(f"the picture {file[:60]!r} lies outside of the folder")
    boxes = np.stack([row[0] for row in rows]) if rows else np.zeros((0, 4), np.float32)
    return CocoImage(
        number,
        file,
        int(each["width"]),
        int(each["height"]),
        boxes,
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], bool),
    )
