"""Reading and writing checkpoints of these networks: safetensors, with timm's config.json or without one.

A folder as timm publishes it has config.json (`architecture`, `num_classes`, `pretrained_cfg`) and
model.safetensors. torchvision's and ProxylessNAS's weights come without a config, so the network is told by
names and shapes; a folder with model.safetensors alone, or a .safetensors file, will do. What we write is
timm's form.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core._files import explain_write_errors, write_atomically
from haversack.core.errors import DamagedFileError, UserError, unknown_name
from haversack.core.pack import TensorEntry
from haversack.formats._pickled import ENDINGS, advice_for_folder, refuse_file
from haversack.formats.safetensors import SafetensorsFile, read_json, write_safetensors
from haversack.models._config import Config
from haversack.models.vision import _names, mobilenetv2, mobilenetv3, proxylessnas
from haversack.models.vision._record import PictureNet

F32 = npt.NDArray[np.float32]
FAMILIES = {"mobilenetv2": mobilenetv2, "mobilenetv3": mobilenetv3, "proxylessnas": proxylessnas}
CONFIG, WEIGHTS = "config.json", "model.safetensors"
CONFIG_MOST = 4 << 20
CLASSES_MOST = 1 << 20
_HEADER_MOST = 1 << 16
"""Enough of a safetensors file to see whose names it holds."""


def variants() -> dict[str, Any]:
    """Architecture name, aliases included, -> (family's module, variant)."""
    found: dict[str, Any] = {}
    for module in FAMILIES.values():
        found |= {name: (module, name) for name in module.VARIANTS}
        found |= {alias: (module, name) for alias, name in module.ALIASES.items()}
    return found


def recognises(path: Path) -> bool:
    """Whether `path` looks like one of these networks: by names, and the first bytes of its weights."""
    weights = path / WEIGHTS if path.is_dir() else path
    if path.is_dir() and (path / CONFIG).is_file():
        try:
            said = json.loads((path / CONFIG).read_bytes()[:CONFIG_MOST])
        except (ValueError, RecursionError):
            return False
        if isinstance(said, dict) and isinstance(said.get("architecture"), str):
            return said["architecture"].removeprefix("tf_") in variants() or "pretrained_cfg" in said
        if isinstance(said, dict) and ("architectures" in said or "model_type" in said):
            return False
    if path.is_dir() and not weights.is_file():
        return False
    if weights.suffix != ".safetensors" or not weights.is_file():
        return False
    with weights.open("rb") as file:
        start = file.read(_HEADER_MOST)
    return any(
        f'"{name}"'.encode() in start for mark in _names.MARKS.values() for name in (mark, f"module.{mark}")
    )


def read_checkpoint(path: Path) -> tuple[PictureNet, dict[str, F32]]:
    """The network at `path` and its tensors by our names, as f32, copied.

    Raises UserError, naming what is missing and what to do, for no folder, pickled weights, an unknown
    architecture, weights that are not finite; DamagedFileError for a tensor that is missing or has a shape
    of another network.
    """
    weights, config = _parts(path)
    file = SafetensorsFile.open(weights)
    given = {name: name for name in file.tensors if not _names.IGNORED.search(name)}
    source = _names.source_of(given)
    if source is None:
        shown = ", ".join(sorted(given)[:3])
        raise UserError(
            f"{weights} holds tensors of no network known here ({shown}, ...); known are the names of "
            f"{', '.join(_names.SOURCES)} for {', '.join(FAMILIES)}.",
            field="model",
            given=str(path),
        )
    if source == "proxylessnas":
        given = {short: name for name, short in _names.without_holes(given).items()}
    record = _described(config, source) if config else _told_by_shapes(weights, file, given, source)
    names = _names.published(record, source)
    tensors = {}
    for ours, shape in record.tensors().items():
        entry = file.tensors.get(given.get(names[ours], ""))
        if entry is None:
            raise DamagedFileError(weights, f"the tensor {names[ours]} is missing", field=names[ours])
        if _without_ones(entry.shape) != _without_ones(shape):
            raise DamagedFileError(
                weights, f"{entry.name} is {list(entry.shape)} and {record.variant} has {list(shape)} there"
            )
        tensors[ours] = numbers(file, entry).reshape(shape)
    over = sorted(set(given) - set(names.values()))
    if over:
        raise UserError(
            f"{weights} holds {over[0]}, which {record.variant} has not ({len(over)} such tensors).",
            field="model",
            given=over[0],
        )
    return record, tensors


def write_checkpoint(path: Path, record: PictureNet, tensors: Mapping[str, F32]) -> None:
    """Write `path` as timm publishes a model: config.json and model.safetensors. Raises UserError for a
    network that timm has no names for, or when the disk is full."""
    if record.family == "proxylessnas":
        raise UserError(
            f"timm has no names for {record.variant}; only MobileNetV2 and V3 are written.", field="output"
        )
    names = _names.published(record, "timm")
    config: dict[str, Any] = {
        "architecture": record.variant,
        "num_classes": record.classifier.outputs,
        "num_features": record.classifier.inputs,
        "pretrained_cfg": {
            "input_size": [3, record.size, record.size],
            "mean": list(record.mean),
            "std": list(record.std),
            "first_conv": "conv_stem",
            "classifier": "classifier",
        },
    }
    if record.labels is not None:
        config["label_names"] = list(record.labels)
    with explain_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    flat = []
    for ours, shape in record.tensors().items():
        array = np.ascontiguousarray(tensors[ours], np.float32)
        here = (*shape, 1, 1) if ours == "hidden.weight" else shape
        flat.append((names[ours], "f32", here, array.data))
    write_safetensors(path / WEIGHTS, flat, {"format": "pt"})
    write_atomically(path / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def numbers(file: SafetensorsFile, entry: TensorEntry) -> F32:
    """A float tensor as f32, a copy of its own. Raises UserError for integers and for what is not finite."""
    data = file.bytes(entry.name)
    if entry.kind == "f32":
        values = np.frombuffer(data, "<f4").astype(np.float32)
    elif entry.kind == "f16":
        values = np.frombuffer(data, "<f2").astype(np.float32)
    elif entry.kind == "bf16":
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        raise UserError(
            f"{entry.name} is stored as {entry.kind}; give the checkpoint in f32, f16 or bf16.",
            field="model",
            given=entry.kind,
            nearest="f16",
        )
    if not np.isfinite(values).all():
        raise UserError(f"{entry.name} holds weights that are not finite.", field="model", given=entry.name)
    return values


def _parts(path: Path) -> tuple[Path, dict[str, Any] | None]:
    """The weights, and the config where there is one."""
    if path.suffix in ENDINGS and path.is_file():
        raise refuse_file(path)
    if path.is_file():
        return path, None
    if not path.is_dir():
        raise UserError(f"{path} does not exist.", field="model", given=str(path))
    if not (path / WEIGHTS).is_file():
        raise UserError(f"{path} has no {WEIGHTS}{advice_for_folder(path)}.", field="model", given=str(path))
    config = read_json(path / CONFIG, CONFIG_MOST) if (path / CONFIG).is_file() else None
    return path / WEIGHTS, config


def _described(values: Mapping[str, Any], source: str) -> PictureNet:
    """The network that config.json describes."""
    config = Config(values)
    known = variants()
    name = values.get("architecture")
    if not isinstance(name, str):
        raise UserError("config.json has no architecture.", field="architecture")
    if name.startswith("tf_") and name.removeprefix("tf_") in known:
        raise UserError(
            f"architecture {name} pads its maps like TensorFlow, which is not computed here; use "
            f"{name.removeprefix('tf_')}.",
            field="architecture",
            given=name,
            nearest=name.removeprefix("tf_"),
        )
    if name not in known:
        raise unknown_name("architecture", name, known)
    others = {key: value for key, value in (values.get("model_args") or {}).items() if value is not None}
    others = {key: value for key, value in others.items() if (key, value) != ("in_chans", 3)}
    if others:
        key, value = next(iter(others.items()))
        raise UserError(
            f"config.json: model_args.{key}={value!r} changes the network in a way that is not computed.",
            field=key,
            given=value,
        )
    module, variant = known[name]
    classes = config.whole("num_classes", 1000, most=CLASSES_MOST)
    record: PictureNet = module.record(variant, classes, source=source)
    said = values.get("pretrained_cfg")
    said = said if isinstance(said, dict) else {}
    labels = values.get("label_names", said.get("label_names"))
    if isinstance(labels, list) and len(labels) == classes and len(set(map(str, labels))) == classes:
        record = replace(record, labels=tuple(str(label) for label in labels))
    return replace(
        record,
        size=_size(said.get("input_size"), record.size),
        mean=_three(said, "mean", record.mean),
        std=_three(said, "std", record.std),
    )


def _size(given: Any, default: int) -> int:
    if given is None:
        return default
    wrong = not isinstance(given, list) or len(given) != 3 or given[0] != 3 or given[1] != given[2]
    if wrong or not isinstance(given[1], int) or not 16 <= given[1] <= 4096:
        raise UserError(
            f"config.json: input_size={given!r} is not [3, S, S] with S of 16 to 4096.",
            field="input_size",
            given=given,
            nearest=[3, default, default],
        )
    return given[1]


def _three(said: Mapping[str, Any], name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    given = said.get(name, list(default))
    right = isinstance(given, list) and len(given) == 3
    right = right and all(isinstance(one, int | float) and math.isfinite(one) for one in given)
    if right and (name != "std" or min(given) > 0):
        return tuple(float(one) for one in given)
    raise UserError(
        f"config.json: {name}={given!r} is not three finite numbers.",
        field=name,
        given=given,
        nearest=list(default),
    )


def _told_by_shapes(
    weights: Path, file: SafetensorsFile, given: Mapping[str, str], source: str
) -> PictureNet:
    """The one network all of whose tensors, the classifier's rows apart, have these names and shapes."""
    for name, module in FAMILIES.items():
        if (source == "proxylessnas") != (name == "proxylessnas"):
            continue
        for variant in module.VARIANTS:
            record: PictureNet = module.record(variant, source=source)
            names = _names.published(record, source)
            last = file.tensors.get(given.get(names["classifier.weight"], ""))
            if set(names.values()) != set(given) or last is None:
                continue
            record = replace(record, classifier=replace(record.classifier, outputs=last.shape[0]))
            if all(
                _without_ones(file.tensors[given[names[ours]]].shape) == _without_ones(shape)
                for ours, shape in record.tensors().items()
            ):
                return record
    raise UserError(
        f"{weights} has the names of {source}, and shapes of no network known here "
        f"({', '.join(sorted(variants()))}).",
        field="model",
        given=str(weights),
    )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1x1 convolution and a linear layer are one matrix."""
    return shape[:2] if shape[2:] == (1, 1) else shape
