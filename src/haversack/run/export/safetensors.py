"""A dense checkpoint folder, as the hub has them: model.safetensors and config.json for transformers.

Packed weights become the numbers they stand for. One number type for all tensors, since that is how
transformers reads a checkpoint: `stored` is the type they share, f32 where they do not or are packed (so that
nothing is rounded). Tensors have the hub's names and shapes again, those that a family keeps together in one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from haversack.core._record import DTYPE_OF_KIND
from haversack.core._safetensors import header_bytes
from haversack.core.memory import MemoryPlan
from haversack.core.progress import Progress
from haversack.models._architecture import Part
from haversack.run._source import Model
from haversack.run.export._tensors import (
    DTYPES,
    F32,
    NBYTES,
    as_kind,
    common_kind,
    export_plan,
    hub_config,
    numbers,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

LAYOUT = "folder"
NAMES = ("model.safetensors",)
WEIGHTS = ("stored", "f32", "f16", "bf16")
_NAMED = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def planned(model: Model, weights: str) -> MemoryPlan:
    """Memory of the export; where a family keeps tensors together, the largest of those in f32."""
    together = _together(model)
    largest = max((math.prod(shape) for shape, _ in together.values()), default=0)
    more = (("tensors put together", 4 * largest),) if together else ()
    return MemoryPlan((*export_plan(model).lines, *more))


def write(model: Model, goal: Path, weights: str, bar: Progress) -> None:
    """Write config.json and model.safetensors into the folder `goal`."""
    kind = common_kind(model.source, list(model.architecture.tensors())) if weights == "stored" else weights
    config = hub_config(model) | {"dtype": _NAMED[kind], "torch_dtype": _NAMED[kind]}
    (goal / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    together = _together(model)
    inside = {part.name for _, parts in together.values() for part in parts}
    shapes = {n: s for n, s in model.architecture.tensors().items() if n not in inside}
    shapes |= {name: shape for name, (shape, _) in together.items()}
    described = [
        (name, DTYPE_OF_KIND[kind], shape, math.prod(shape) * NBYTES[kind]) for name, shape in shapes.items()
    ]
    with (goal / NAMES[0]).open("wb") as file:
        file.write(header_bytes(described, {"format": "pt"}))
        for name in shapes:
            whole = together.get(name)
            for piece in _put_together(model, *whole) if whole else numbers(model.source, name):
                file.write(_bytes(name, piece, kind))
            bar.advance()
        file.flush()
        os.fsync(file.fileno())


def _bytes(name: str, values: F32, kind: str) -> Buffer:
    return np.ascontiguousarray(as_kind(name, values, kind), DTYPES[kind]).data


def _together(model: Model) -> dict[str, tuple[tuple[int, ...], list[Part]]]:
    """Tensor of the hub -> (its shape, the parts that the architecture names inside it)."""
    found: dict[str, tuple[tuple[int, ...], list[Part]]] = {}
    for part in model.architecture.parts:
        found.setdefault(part.holder, (part.shape, []))[1].append(part)
    return found


def _put_together(model: Model, shape: tuple[int, ...], parts: list[Part]) -> Iterator[F32]:
    """The tensor of `shape` whose rows (or, turned over, columns) the parts are."""
    whole = np.zeros(shape, np.float32)
    for part in parts:
        at = part.first
        for piece in numbers(model.source, part.name):
            if part.transposed:
                whole[:, at : at + len(piece)] = piece.T
            else:
                whole[at : at + len(piece)] = piece
            at += len(piece)
    yield whole
