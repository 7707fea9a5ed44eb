"""Packs of one small file as graphs of floats: forecasters that fold by a period, dense forecasters, CURA.

Papers: MixLinear (arXiv 2410.02081) and SparseTSF (ICML 2024) with one map between periods; DLinear (AAAI
2023); CURA as models/series/cura.py has it.
What is here: a forecaster takes the last `seq` values of one channel as they were measured and gives the next
`horizon`: mean off, kernel, map between periods, mean on. CURA takes the numbers that its front end makes of
a row; means and scales of training are folded into its first and its last layer, and the knobs d into the
layers before them.
What we changed: MixLinear's two paths are written out as the one map [periods ahead, periods back] that they
are: fewer operations, more constants where the window is long.
Limits: one channel; CURA with tanh or relu; no text or picture front ends in C.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.small_pack import SmallPack
from haversack.models.graph._ir import Add, Conv2d, FullyConnected, Graph, Mean, Op, Reshape, Tensor
from haversack.models.graph._moves import Multiply, Part, Permute, Shift
from haversack.models.graph.series import Activation
from haversack.models.series._factors import centred_taps
from haversack.models.series._saved import FORECASTERS, from_pack
from haversack.models.series.cura import Design
from haversack.models.series.dlinear import DLinear
from haversack.models.series.mixlinear import MixLinear
from haversack.models.series.sparsetsf import SparseTSF

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]
SYSTEM = 18


def load_small_pack(path: str | Path) -> Graph:
    """The graph in a pack of one file. Raises UserError for a model that has no graph, DamagedFileError."""
    place = Path(path)
    pack = SmallPack.read(place)
    if pack.model == "cura":
        try:
            return cura_graph(pack, place.stem)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedFileError(
                place, f"its record and arrays do not go together ({error})", field="model"
            ) from error
    if pack.model not in FORECASTERS:
        raise UserError(
            f"{place} holds the model {pack.model[:40]!r}, which has no graph (cura, "
            f"{', '.join(FORECASTERS)} have).",
            field="model",
            given=pack.model[:40],
        )
    model, _ = from_pack(pack, place)
    if isinstance(model, DLinear):
        return dense_graph(model, place.stem)
    if isinstance(model, MixLinear | SparseTSF):
        between = model.period_map() if isinstance(model, MixLinear) else model.map_
        return periodic_graph(model.kernel_, between, model.seq, model.period, model.horizon, place.stem)
    raise UserError(
        f"{place} holds a {pack.model}, which repeats its last period; there is nothing to compile.",
        field="model",
        given=pack.model,
    )


class _Making:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.constants: dict[str, Array] = {}
        self.ops: list[Op] = []

    def tensor(self, name: str, *shape: int) -> str:
        self.tensors[name] = Tensor(name, shape, "f32")
        return name

    def constant(self, name: str, values: Array) -> str:
        self.constants[name] = np.ascontiguousarray(values, np.float32)
        return self.tensor(name, *values.shape)

    def dense(self, name: str, x: str, weight: Array, bias: Array) -> str:
        """A layer of `weight` [inputs, outputs]; what it writes."""
        y = self.tensor(f"{name}.y", weight.shape[1])
        held = self.constant(f"{name}.weight", weight.T)
        self.ops.append(FullyConnected(x, held, self.constant(f"{name}.bias", bias), y))
        return y

    def function(self, x: str, name: str) -> str:
        y = self.tensor(f"{x}.{name}", *self.tensors[x].shape)
        self.ops.append(Activation(x, y, name))
        return y

    def graph(self, name: str, y: str) -> Graph:
        return Graph(
            name, self.tensors, tuple(self.ops), ("input",), (y,), self.constants, tuple(self.constants)
        )


def periodic_graph(kernel: F64, between: F64, seq: int, period: int, horizon: int, name: str) -> Graph:
    """Forecast by a kernel along the steps and a map [ahead, back] between periods."""
    ahead, back = between.shape
    made = _Making()
    x = made.tensor("input", seq)
    made.tensor("series", 1, seq, 1)
    made.ops += [
        Reshape(x, "series"),
        Mean("series", made.tensor("mean", 1)),
        Shift("series", "mean", made.tensor("centred", 1, seq, 1), -1.0),
    ]
    taps = centred_taps(kernel)  # with the 1 of x + x * kernel
    half = len(kernel) // 2
    weight = made.constant("kernel", taps.reshape(1, 1, -1, 1))
    pads = ((0, 0), (half, len(kernel) - 1 - half))
    made.ops += [
        Conv2d("centred", weight, None, made.tensor("smooth", 1, seq, 1), pads=pads),
        Reshape("smooth", made.tensor("periods", back, period, 1)),
        Conv2d(
            "periods",
            made.constant("between", between.reshape(ahead, back, 1, 1)),
            None,
            made.tensor("phases", 1, period, ahead),
        ),
        Permute("phases", made.tensor("ahead", ahead, 1, period), (2, 0, 1)),
        Reshape("ahead", made.tensor("steps", ahead * period)),
        Part("steps", made.tensor("cut", horizon), 0, horizon),
        Reshape("cut", made.tensor("column", horizon, 1)),
        Shift("column", "mean", made.tensor("level", horizon, 1)),
        Reshape("level", made.tensor("forecast", horizon)),
    ]
    return made.graph(name, "forecast")


def dense_graph(model: Any, name: str) -> Graph:
    """Forecast by one matrix, in the units of the series. Raises UserError for several channels."""
    mean, scale = (np.ravel(each) for each in (model.mean_, model.scale_))
    if len(mean) != 1:
        raise UserError(
            f"{name} forecasts {len(mean)} channels, each with a level of its own; fit it on one.",
            field="model",
            given=len(mean),
            nearest=1,
        )
    matrix = model.to_matrix()
    bias = model.bias_ * scale + mean - matrix.sum(axis=1) * mean
    made = _Making()
    return made.graph(name, made.dense("dense", made.tensor("input", model.seq), matrix.T, bias))


def cura_graph(pack: SmallPack, name: str) -> Graph:
    """CURA's pass over one row. Raises ValueError, KeyError or TypeError where record and arrays do not
    fit."""
    width, blocks, clip = pack.record["design"]
    arrays = pack.arrays
    inputs, classes = len(arrays["mean"]), pack.record["classes"]
    outputs = len(classes) or len(arrays["y_mean"])
    design = Design(inputs, outputs, width, blocks, clip=clip)
    if design.clip not in ("tanh", "relu"):
        raise UserError(
            f"{name} clips by {design.clip}, which has no C kernel; train it with --clip tanh or relu.",
            field="model",
            given=design.clip,
            nearest="tanh",
        )
    if len(arrays["parameters"]) != design.count():
        raise ValueError("there are too few or too many numbers")
    p = design.split(arrays["parameters"])
    made = _Making()
    first = p["W_in"] / arrays["scale"][:, None]
    x = made.dense("first", made.tensor("input", inputs), first, p["b_in"] - arrays["mean"] @ first)
    h = made.function(x, "tanh")
    for block in range(blocks):
        cell, d = 0 if design.tied else block, p["d"][block]
        tag = f"block{block}"
        drive = made.dense(f"{tag}.drive", h, p["S"][cell] * d, p["c"][cell] * d)
        out = made.function(drive, design.clip)
        if design.gate:
            gate = made.function(made.dense(f"{tag}.gate", h, p["G"][cell], p["g"][cell]), "sigmoid")
            y = made.tensor(f"{tag}.gated", width)
            made.ops.append(Multiply(out, gate, y))
            out = y
        mixed = made.tensor(f"{tag}.mixed", width)
        made.ops.append(Multiply(out, made.constant(f"{tag}.m", p["m"][block]), mixed))
        h_next = mixed
        if design.residual:
            h_next = made.tensor(f"{tag}.y", width)
            made.ops.append(Add(h, mixed, h_next))
        h = h_next
    scale, mean = arrays.get("y_scale", np.ones(outputs)), arrays.get("y_mean", np.zeros(outputs))
    return made.graph(name, made.dense("last", h, p["W_out"] * scale, p["b_out"] * scale + mean))
