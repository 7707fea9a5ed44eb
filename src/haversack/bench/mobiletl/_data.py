"""CIFAR-10 in two halves: five classes to pretrain on, five others to transfer to, as arrays of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._cache import cached
from haversack.bench._rows import Unavailable
from haversack.core._datasets import datasets, local_path

BEFORE = ("airplane", "automobile", "bird", "cat", "deer")
AFTER = ("dog", "frog", "horse", "ship", "truck")
SIZE = 32
TRAIN, TEST = 2000, 500
"""Pictures taken of each class, the first by name."""


@dataclass(frozen=True)
class Pictures:
    """u8 [n, 32, 32, 3] and class numbers [n]."""

    pictures: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def taken(self, chosen: npt.NDArray[Any]) -> Pictures:
        """The rows `chosen`."""
        return Pictures(self.pictures[chosen], self.labels[chosen])


def read(classes: tuple[str, ...]) -> tuple[Pictures, Pictures]:
    """(train, test) of `classes`, whose numbers follow their order; decoded once into the cache. Raises
    Unavailable where CIFAR-10 is not on this machine, or Pillow is not installed."""
    path = local_path("cifar-10")
    if path is None:
        raise Unavailable(f"{datasets()['cifar-10'].file} is not in the folder that HAVERSACK_DATA names")
    try:
        import PIL
    except ImportError:
        raise Unavailable("Pillow is not installed; run: pip install 'haversack[vision]'") from None
    state = path.stat()
    inputs = {
        "classes": classes,
        "most": [TRAIN, TEST],
        "source": [path.name, state.st_size],
        "pillow": PIL.__version__,
    }
    folder = cached("cifar-10", inputs, lambda goal: _decode(path, classes, goal))
    return _load(folder, "train"), _load(folder, "test")


def _decode(path: Path, classes: tuple[str, ...], goal: Path) -> None:
    from haversack.formats.pictures import read_folder, read_picture

    found = read_folder(path)
    assert found.held_out is not None
    for part, most in (("train", TRAIN), ("test", TEST)):
        pictures, labels = [], []
        for number, name in enumerate(classes):
            files = [
                file
                for file, label, held in zip(found.files, found.labels, found.held_out, strict=True)
                if found.classes[label] == name and held == (part == "test")
            ][:most]
            pictures += [read_picture(file, SIZE, SIZE) for file in files]
            labels += [number] * len(files)
        np.save(goal / f"{part}-pictures.npy", np.stack(pictures))
        np.save(goal / f"{part}-labels.npy", np.array(labels, np.int64))


def _load(folder: Path, part: str) -> Pictures:
    return Pictures(np.load(folder / f"{part}-pictures.npy"), np.load(folder / f"{part}-labels.npy"))
