"""encodings.json beside a graph: the grid of every number that a compiler for an integer device must round.

`activation_encodings` and `param_encodings` map a tensor of the graph to a list of grids, one for the tensor
or one for each output row: `min`, `max`, `scale`, `offset` (the code that stands for 0, negative as device
compilers count it [recalled]), `bitwidth`, `is_symmetric`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from haversack.core.errors import DamagedFileError
from haversack.core.pack import Pack
from haversack.kernels._matrix import unpack_integers
from haversack.run._forms import forms_of
from haversack.run._weights import tensor
from haversack.run.export._tensors import vector

if TYPE_CHECKING:
    from haversack.run.export._onnx_graph import Graph

ENCODINGS = "encodings.json"
RANGES, CONFIG = "act_ranges.json", "qconfig.json"


def affine(low: float, high: float, bits: int) -> dict[str, Any]:
    """The asymmetric grid over `low` to `high`."""
    scale = (high - low) / ((1 << bits) - 1)
    offset = round(low / scale) if scale else 0
    return {
        "min": low,
        "max": high,
        "scale": scale,
        "offset": offset,
        "bitwidth": bits,
        "is_symmetric": False,
    }


def symmetric(scale: float, bits: int) -> dict[str, Any]:
    """The symmetric grid of step `scale`."""
    top = 1 << (bits - 1)
    return {
        "min": -top * scale,
        "max": (top - 1) * scale,
        "scale": scale,
        "offset": -top,
        "bitwidth": bits,
        "is_symmetric": True,
    }


def encodings_of(source: Any, graph: Graph) -> dict[str, Any] | None:
    """The encodings of `graph`'s tensors; None for a source without static ranges.

    Raises DamagedFileError for ranges that name what the graph does not have.
    """
    if not isinstance(source, Pack) or RANGES not in source.record.files:
        return None
    ranges, config = (json.loads(source.read_file(name)) for name in (RANGES, CONFIG))
    activations: dict[str, Any] = {}
    for module, sides in ranges.items():
        for side, (low, high) in sides.items():
            name = graph.points.get((module, side))
            if name is None:
                said = f"it has a range of the {side} of {module}, which the graph lacks"
                raise DamagedFileError(source.path / RANGES, said, field=module)
            activations[name] = [affine(low, high, int(config[module][side]["bitwidth"]))]
    parameters: dict[str, Any] = {}
    for name in forms_of(source):
        entry = source.tensors[f"{name}.codes"]
        _, scales = unpack_integers(tensor(entry, source.bytes(entry.name)))
        rows = np.asarray(scales, np.float64).reshape(entry.shape[0], -1)[:, 0]
        bits = int(config[name.removesuffix(".weight")]["weight"]["bitwidth"])
        each = bool(config[name.removesuffix(".weight")]["weight"]["is_per_channel"])
        parameters[entry.name] = [symmetric(float(scale), bits) for scale in (rows if each else rows[:1])]
    for module, sides in config.items():
        if "weight" in sides and f"{module}.weight" in source.tensors:
            values = vector(source, f"{module}.weight")
            low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
            parameters[f"{module}.weight"] = [affine(low, high, int(sides["weight"]["bitwidth"]))]
    return {"activation_encodings": activations, "param_encodings": parameters}
