"""Keras networks in HDF5 files: the layers of `model_config`, with their arrays from `model_weights`.

Source: what Keras 2 and 3 write for `model.save("NAME.h5")`: JSON in the root's attribute `model_config`, a
group of arrays for every layer (older files lay a GRU's arrays in the layer's group, later ones in a group of
its cell; names end in `:0` or do not). Sequential networks and functional ones that are a chain.

A file is read under limits: no link that leaves it, no array that is kept elsewhere or virtual, no more bytes
than it has. Needs h5py (extra `embed`), imported when a file is opened. Weights-only files hold no layers and
are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError, MissingExtraError, UserError

Array = npt.NDArray[Any]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MOST_LAYERS = 1000
MOST_CONFIG = 1 << 24
MOST_BYTES = 1 << 30
MOST_DEPTH = 8


@dataclass(frozen=True)
class KerasLayer:
    """One layer: its class, name, config, and arrays by short name (`kernel`, `recurrent_kernel`, `bias`,
    ...)."""

    kind: str
    name: str
    config: Mapping[str, Any]
    arrays: Mapping[str, Array]


@dataclass(frozen=True)
class KerasModel:
    """Layers in the order of the chain; the shape of an example, None where it is free; Keras' version."""

    layers: tuple[KerasLayer, ...]
    input_shape: tuple[int | None, ...]
    version: str


def is_keras(path: Path) -> bool:
    """Whether a file is HDF5."""
    try:
        with path.open("rb") as file:
            return file.read(8) == SIGNATURE
    except OSError:
        return False


def read_keras(path: Path) -> KerasModel:
    """The network in a file.

    Raises DamagedFileError for a file that is not what Keras writes, UserError for one without layers or with
    branches, MissingExtraError without h5py.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("reading Keras networks", "h5py", "embed") from error
    if not path.is_file():
        raise UserError(f"{path} is not a file.", field="model", given=str(path))
    try:
        with h5py.File(path, "r") as file:
            return _read(path, file)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())[:200]
        raise DamagedFileError(path, f"it is no Keras network ({said})", field="model") from error


def _read(path: Path, file: Any) -> KerasModel:
    raw = file.attrs.get("model_config")
    if raw is None:
        raise UserError(
            f"{path} holds no layers (no model_config), only weights at most; save the whole model: "
            "model.save('NAME.h5').",
            field="model",
            given=str(path),
        )
    text = _text(raw)
    if len(text) > MOST_CONFIG:
        raise ValueError(f"its model_config is {len(text)} bytes long")
    config = json.loads(text)
    version = _text(file.attrs.get("keras_version", ""))
    entries = _chain(path, config)
    if not 0 < len(entries) <= MOST_LAYERS:
        raise ValueError(f"it has {len(entries)} layers")
    group = _child(file, "model_weights")
    layers = []
    for entry in entries:
        settings = entry["config"]
        name = str(settings.get("name", entry.get("name", "")))
        arrays = dict(_arrays(_child(group, name), path)) if name in group else {}
        layers.append(KerasLayer(str(entry["class_name"]), name, settings, arrays))
    return KerasModel(tuple(layers), _input_shape(entries, config), version)


def _text(raw: Any) -> str:
    return raw.decode("utf-8") if isinstance(raw, bytes) else str(raw)


def _child(group: Any, name: str) -> Any:
    """A member of a group that lies in this file. Raises ValueError for a link that leaves it."""
    import h5py

    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        raise ValueError(f"{name[:80]} is a link to another file")
    return group[name]


def _arrays(group: Any, path: Path, depth: int = 0) -> Iterator[tuple[str, Array]]:
    """The arrays under a layer's group by the last part of their names."""
    import h5py

    if depth > MOST_DEPTH:
        raise ValueError("its groups lie too deep")
    seen: set[str] = set()
    for name in group:
        member = _child(group, name)
        if isinstance(member, h5py.Group):
            found = list(_arrays(member, path, depth + 1))
        else:
            if member.external or member.is_virtual:
                raise ValueError(f"{name[:80]} keeps its numbers outside of the file")
            if member.dtype.kind != "f" or member.size * member.dtype.itemsize > min(
                MOST_BYTES, 16 * path.stat().st_size
            ):
                raise ValueError(f"{name[:80]} is no array of floats that fits the file")
            found = [(name.partition(":")[0], np.asarray(member[()]))]
        for short, values in found:
            if short in seen:
                raise ValueError(f"a layer holds {short[:80]} twice")
            seen.add(short)
            yield short, values


def _chain(path: Path, config: Any) -> list[dict[str, Any]]:
    """The layers' entries in order. Raises UserError for a network with branches."""
    kind, inner = config["class_name"], config["config"]
    entries = inner if isinstance(inner, list) else inner["layers"]
    if kind == "Sequential":
        return list(entries)
    if kind not in ("Functional", "Model"):
        raise UserError(
            f"{path} is a {str(kind)[:80]}; Sequential and Functional networks are read.",
            field="model",
            given=kind,
        )
    after: dict[str | None, dict[str, Any]] = {}
    for entry in entries:
        before = _inbound(entry)
        if len(before) > 1 or (before[0] if before else None) in after:
            raise UserError(
                f"{path} branches at its layer {str(entry['config'].get('name'))[:80]}; chains of layers "
                f"are read.",
                field="model",
                given=str(entry["class_name"])[:80],
            )
        after[before[0] if before else None] = entry
    found: list[dict[str, Any]] = []
    at = after.get(None)
    while at is not None and len(found) <= len(entries):
        found.append(at)
        at = after.get(at["config"]["name"])
    if len(found) != len(entries):
        raise ValueError("its layers are not a chain")
    return found


def _inbound(entry: Mapping[str, Any]) -> list[str]:
    """The names of the layers that a layer reads, in the nodes of Keras 2 and of Keras 3."""
    nodes = entry.get("inbound_nodes") or []
    if not nodes:
        return []
    node = nodes[0]
    if isinstance(node, Mapping):
        found: list[str] = []
        _histories(node.get("args", []), found)
        return found
    return [str(each[0]) for each in node]


def _histories(value: Any, found: list[str]) -> None:
    if isinstance(value, Mapping):
        if value.get("class_name") == "__keras_tensor__":
            found.append(str(value["config"]["keras_history"][0]))
            return
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            _histories(each, found)


def _input_shape(entries: list[dict[str, Any]], config: Mapping[str, Any]) -> tuple[int | None, ...]:
    first = entries[0]
    settings = first["config"]
    inner = config["config"]
    places = [
        settings.get("batch_shape"),
        settings.get("batch_input_shape"),
        (first.get("build_config") or {}).get("input_shape"),
        inner.get("build_input_shape") if isinstance(inner, Mapping) else None,
    ]
    for shape in places:
        if shape is not None:
            return tuple(None if size is None else int(size) for size in shape[1:])
    raise ValueError("the shape of its input is not told")
