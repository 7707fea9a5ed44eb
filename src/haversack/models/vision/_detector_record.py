"""What tells one published detector from another: its family, its tensors' shapes, its norm, its classes.

`Detector` is the record that a split pack keeps of the frozen teacher behind the cut. `teacher.` stands
before its tensors' names there.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.models.vision._detector_maps import MisfitError, Sizes, Source
from haversack.models.vision._record import IMAGENET_MEAN, IMAGENET_STD

F32 = NDArray[np.float32]
FAMILIES = {"faster-rcnn": "faster_rcnn", "efficientdet": "efficientdet"}
"""Name -> module of this folder."""
PREFIX = "teacher."
MOST_TENSORS = 4000
Triple = tuple[float, float, float]


class Detector(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`shapes`: name -> shape of each tensor, in the order of use; `columns`: which output each class has;
    `mean` and `deviation`: of the pixels, 0 to 1, red first."""

    family: str
    shapes: dict[str, tuple[int, ...]]
    columns: tuple[int, ...]
    mean: Triple = IMAGENET_MEAN
    deviation: Triple = IMAGENET_STD

    @property
    def module(self) -> ModuleType:
        """The family's layers."""
        return family_of(self.family)

    @property
    def split(self) -> int:
        """Channels of the feature at the split."""
        sizes = Sizes(self.shapes)
        made: int = self.module.front(sizes, sizes_in(self.module.MULTIPLE)).channels
        return made

    def check(self, side: int) -> Sizes:
        """The sizes at `side`. Raises MisfitError where tensors or numbers do not fit together."""
        if len(self.shapes) > MOST_TENSORS or side % self.module.MULTIPLE:
            raise MisfitError(f"it has {len(self.shapes)} tensors and reads pictures of {side} pixels")
        sizes: Sizes = self.module.check(self.shapes, side)
        spare = sorted(set(self.shapes) - sizes.used)
        if spare:
            raise MisfitError(f"nothing uses {spare[0]}")
        first = getattr(self.module, "FIRST_COLUMN", 1)
        outputs = self.module.outputs_of(self.shapes)
        if not self.columns or any(not first <= one < first + outputs for one in self.columns):
            raise MisfitError(f"its classes are not among its {outputs} outputs")
        numbers = (*self.mean, *self.deviation)
        if not all(math.isfinite(value) for value in numbers) or min(self.deviation) <= 0:
            raise MisfitError("its mean or deviation of pixels is not possible")
        return sizes

    def scale_and_shift(self) -> tuple[F32, F32]:
        """What takes pictures as the split networks norm them (-2 to 2) to this detector's norm, by
        colour."""
        deviation = np.asarray(self.deviation, np.float64)
        shift = (0.5 - np.asarray(self.mean)) / deviation
        return (0.25 / deviation).astype(np.float32), shift.astype(np.float32)


def sizes_in(side: int) -> Any:
    """A picture's sizes."""
    from haversack.models.vision._detector_maps import Map

    return Map(3, side)


def family_of(name: str) -> ModuleType:
    """The module of a family. Raises MisfitError for one that there is not."""
    if name not in FAMILIES:
        raise MisfitError(f"the family {name[:40]!r} is not known")
    return importlib.import_module(f"haversack.models.vision.{FAMILIES[name]}")


def named(tensors: Mapping[str, F32]) -> dict[str, F32]:
    """The tensors by the names that a pack has them by."""
    return {PREFIX + name: each for name, each in tensors.items()}


def read_detector(path: Path, tensors: Mapping[str, F32]) -> tuple[str, dict[str, F32]]:
    """(family, folded tensors) of a checkpoint. Raises UserError for one of no family that is known, and for
    tensors that are missing, left over or of other sizes, with their names."""
    name = next((one for one in FAMILIES if any(mark in tensors for mark in family_of(one).MARKS)), None)
    if name is None:
        some = ", ".join(sorted(tensors)[:3]) or "nothing"
        raise _refused(
            f"{path} is a checkpoint of no detector that is known ({', '.join(FAMILIES)}): it holds {some}.",
            path,
        )
    module, source = family_of(name), Source(tensors)
    try:
        found: dict[str, F32] = module.read(source)
        _complete(path, name, source)
        shapes = {one: each.shape for one, each in found.items()}
        spare = set(shapes) - module.check(shapes, module.MULTIPLE * 2).used
        if spare:
            raise MisfitError(f"nothing uses {min(spare)}")
    except MisfitError as error:
        raise _refused(f"the tensors of {path} do not fit together as {name}'s: {error}.", path) from error
    for one, each in found.items():
        if not np.isfinite(each).all():
            raise _refused(f"the tensor {one} of {path} holds what is no number.", path)
    return name, found


def _complete(path: Path, name: str, source: Source) -> None:
    """Raises UserError where tensors were missing, or nobody took some."""
    parts = (("it lacks", source.missing), ("it has besides", sorted(source.left)))
    told = [f"{what} {_few(names)}" for what, names in parts if names]
    if told:
        known = family_of(name).KNOWN
        raise _refused(
            f"{path} looks like {name}, but {' and '.join(told)}; give the state dict of {known}.", path
        )


def _refused(sentence: str, path: Path) -> UserError:
    return UserError(sentence, field="teacher", given=str(path))


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def columns_of(
    path: Path, outputs: int, first: int, classes: tuple[str, ...], categories: tuple[int, ...]
) -> tuple[int, ...]:
    """The output of each class: in their order where there are as many outputs; else by category number, as
    networks of COCO's 90 numbers have them. Raises UserError where neither fits."""
    if outputs == len(classes):
        return tuple(range(first, first + outputs))
    if len(categories) == len(classes) < outputs and 1 <= min(categories) <= max(categories) <= outputs:
        return tuple(number - 1 + first for number in categories)
    raise UserError(
        f"{path} tells {outputs} classes apart and the annotations have {len(classes)} "
        f"({', '.join(classes)[:120]}), with category numbers up to {max(categories, default=len(classes))}; "
        f"give annotations of {outputs} categories, or with numbers within 1 to {outputs}.",
        field="annotations",
        given=len(classes),
        nearest=outputs,
    )
