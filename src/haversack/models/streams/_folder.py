"""A pipeline's model as a folder: pipeline.json (senses, labels, accuracy table), model.safetensors (f16)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from haversack.core._files import write_atomically
from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.safetensors import SafetensorsFile, read_json, write_safetensors
from haversack.models.streams._record import Shape
from haversack.models.streams._sizes import tensor_shapes

RECORD, WEIGHTS, PHOTOS = "pipeline.json", "model.safetensors", "photos.safetensors"
FORMAT = 1
MOST = 1 << 20
F32 = NDArray[np.float32]


def write_folder(folder: Path, shape: Shape, table: F32, tensors: Mapping[str, F32]) -> None:
    """Write a model: its record with the accuracy table [video, rate, audio, chunk, class] and its tensors
    as f16."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"format": FORMAT, **asdict(shape), "accuracy": np.round(table.astype(float), 4).tolist()}
    write_safetensors(
        folder / WEIGHTS,
        [
            (name, "f16", array.shape, np.ascontiguousarray(array, np.float16).tobytes())
            for name, array in sorted(tensors.items())
        ],
    )
    write_atomically(folder / RECORD, (json.dumps(record) + "\n").encode())


def read_folder(folder: Path) -> tuple[Shape, F32, dict[str, F32]]:
    """(record, accuracy table, tensors in f32). Raises UserError where there is no such model,
    DamagedFileError for one that does not hold."""
    path = folder / RECORD
    if not path.is_file():
        raise UserError(
            f"{folder} is no model of a pipeline: it holds no {RECORD}; give the name of one that ships "
            "(events) or a folder that reference/train_events.py wrote.",
            field="model",
            given=str(folder),
            nearest="events",
        )
    raw = read_json(path, MOST)
    if raw.pop("format", None) != FORMAT:
        raise DamagedFileError(path, f"its format is not {FORMAT}")
    table = raw.pop("accuracy", None)
    try:
        shape = msgspec.convert(raw, Shape)
    except msgspec.ValidationError as error:
        raise DamagedFileError(path, str(error)) from error
    _check(path, shape)
    return shape, _table(path, table, shape), _tensors(folder / WEIGHTS, shape)


def _check(path: Path, shape: Shape) -> None:
    for sense in shape.senses:
        fine = 0 < sense.rate <= 1e6 and 0 < sense.window_s <= 60 and sense.length >= 1
        fine = fine and math.prod(sense.shape) <= 1 << 20 and all(size > 0 for size in sense.shape)
        fine = fine and 0 < len(sense.units) <= 16 and all(0 < each <= sense.rate for each in sense.units)
        if not fine or sense.kind not in ("frames", "samples"):
            raise DamagedFileError(path, f"the sense {sense.name[:40]!r} is impossible")
    fine = shape.slow.kind == "frames" and shape.fast.kind == "samples" and 2 <= len(shape.labels) <= 1000
    if not fine or not 0 < len(shape.sizes) <= 8 or not 0 <= shape.gate_cut <= 1:
        raise DamagedFileError(path, "its senses, labels or sizes are impossible")
    if shape.usual_evidence is not None and not -1 <= shape.usual_evidence <= 1:
        raise DamagedFileError(path, "its usual evidence is no cosine")


def _table(path: Path, table: Any, shape: Shape) -> F32:
    slow, fast = shape.senses
    wanted = (len(shape.sizes), len(slow.units), len(shape.sizes), len(fast.units), len(shape.labels))
    try:
        made = np.asarray(table, np.float32)
    except (TypeError, ValueError) as error:
        raise DamagedFileError(path, "its accuracy table holds what is no number") from error
    if made.shape != wanted:
        raise DamagedFileError(
            path,
            f"its accuracy table has the shape {made.shape}, but {len(shape.labels)} classes and its "
            f"configurations make {wanted}",
        )
    if not (np.isfinite(made).all() and (made >= 0).all() and (made <= 1).all()):
        raise DamagedFileError(path, "its accuracy table holds what is no share from 0 to 1")
    return made


def _tensors(path: Path, shape: Shape) -> dict[str, F32]:
    file = SafetensorsFile.open(path)
    found: dict[str, F32] = {}
    for name, wanted in tensor_shapes(shape).items():
        entry = file.tensors.get(name)
        if entry is None or tuple(entry.shape) != wanted or entry.kind != "f16":
            told = "missing" if entry is None else f"{entry.kind} {tuple(entry.shape)}"
            raise DamagedFileError(path, f"the tensor {name} is {told}, not f16 {wanted}")
        values = np.frombuffer(file.bytes(name), "<f2").astype(np.float32).reshape(wanted)
        if not np.isfinite(values).all():
            raise DamagedFileError(path, f"the tensor {name} holds what is no number")
        found[name] = values
    return found


def read_photos(path: Path) -> NDArray[np.uint8]:
    """The photographs u8 [n, side, side] that made recordings lie over."""
    file = SafetensorsFile.open(path)
    entry = file.tensors.get("photos")
    if entry is None or entry.kind != "u8" or len(entry.shape) != 3 or entry.shape[1] != entry.shape[2]:
        raise DamagedFileError(path, "it holds no square photographs")
    return np.frombuffer(file.bytes("photos"), np.uint8).reshape(entry.shape)


def write_photos(path: Path, photos: NDArray[np.uint8]) -> None:
    """Write photographs u8 [n, side, side]."""
    write_safetensors(path, [("photos", "u8", photos.shape, np.ascontiguousarray(photos).tobytes())])


def bundled(name: str | os.PathLike[str]) -> Path:
    """The folder of a model that ships, by its name, or the path itself."""
    from importlib.resources import files

    shipped = Path(str(files("haversack").joinpath("reference_models", str(name))))
    plain = str(name).replace("-", "").isalnum()
    return shipped if plain and (shipped / RECORD).is_file() else Path(name)
