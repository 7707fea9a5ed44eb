"""How many instructions a network takes on a core: a model fitted to what its emulated board counts.

Paper: Toward smart composites (arXiv 2205.10940) gives rates on one core; the model is this package's own.
What is here: a kernel takes so many instructions for each product with an addition, so many for each place
of a window that it visits and so many for each number that it writes; other operations take them for each
number that they look at. `counted` builds small
networks for a core, marks the time between operations and reads what QEMU counts; `fit` is the least squares
of the relative errors; `predicted` adds up a network. `instructions.json` holds what `haversack embed
calibrate` fitted; `haversack embed verify` counts the whole pass of a folder and says how far off the model
is.
What a count is not: cycles. QEMU counts instructions exactly, and knows no pipeline, no memory that makes a
core wait and no second instruction at once. `cycles_per_instruction` of targets.py stands for these, and
nothing calibrates it here [inferred].
Cost: six compilations and runs a core. Limits: recurrent layers are predicted as dense ones; the compiler's
version moves the figures.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.embed._c import rendered
from haversack.embed._host import STRICT
from haversack.embed.targets import Target
from haversack.models.graph._ir import (
    Add,
    AveragePool,
    Clamp,
    Conv2d,
    DepthwiseConv2d,
    FullyConnected,
    Graph,
    Linear,
    MaxPool,
    Mean,
    Op,
    Quantization,
    Tensor,
)

if TYPE_CHECKING:
    from haversack.embed._emission import Emission

SYSTEM = 18
PLACE = Path(__file__).with_name("instructions.json")
KINDS = ("float", "int8-fixed", "int8-float")
"""Numbers, and of codes the rule by which they are rounded."""

Cost = tuple[float, float, float]
Costs = dict[str, Cost]
"""Kernel -> instructions for a product, for a place of a window, for a number written (or looked at)."""


@dataclass(frozen=True)
class Counted:
    """One operation: its kernel, products with an addition, places of windows, numbers, and the instructions
    that were counted."""

    kernel: str
    products: int
    places: int
    numbers: int
    instructions: int

    def by(self, cost: Cost) -> float:
        """Instructions by `cost`."""
        return cost[0] * self.products + cost[1] * self.places + cost[2] * self.numbers


def fit(rows: Sequence[Counted]) -> Cost:
    """Instructions for a product, a place and a number, none below 0, with the least squares of the relative
    errors."""
    table = np.array([(row.products, row.places, row.numbers) for row in rows], np.float64)
    scaled = table / np.array([[row.instructions] for row in rows])
    best, least = np.zeros(3), math.inf
    for count in (1, 2, 3):
        for columns in map(list, itertools.combinations(range(3), count)):
            part = scaled[:, columns]
            if np.linalg.matrix_rank(part) < count:
                continue
            found = np.linalg.lstsq(part, np.ones(len(rows)), rcond=None)[0]
            error = float(np.square(part @ found - 1).sum())
            if (found >= 0).all() and error < least - 1e-12:
                best, least = np.zeros(3), error
                best[columns] = found
    return float(best[0]), float(best[1]), float(best[2])


def work(graph: Graph, op: Op, kernel: str) -> tuple[str, int, int, int]:
    """The kernel of an operation, its products, the places of windows that it visits (a product of matrices
    visits them once for all outputs), the numbers that it writes or looks at."""
    y = graph.tensors[op.writes[0]]
    if isinstance(op, Linear):
        weight = graph.tensors[op.weight]
        products, places = math.prod(y.shape[:-1]) * weight.size, 0
        if isinstance(op, Conv2d) and not isinstance(op, DepthwiseConv2d):
            places = math.prod(weight.shape[1:3]) * (y.size if kernel == "direct" else y.size // y.shape[-1])
        return _kernel_name(op, kernel), products, places, y.size
    if isinstance(op, AveragePool | MaxPool):
        return "pool", 0, 0, y.size * math.prod(op.size)
    if isinstance(op, Mean):
        return "mean", 0, 0, graph.tensors[op.x].size
    return "clamp" if isinstance(op, Clamp) else "add", 0, 0, y.size


def _kernel_name(op: Op, kernel: str) -> str:
    layer = "dense"
    if isinstance(op, Conv2d):
        layer = "depthwise" if isinstance(op, DepthwiseConv2d) else "conv2d"
    return layer if kernel == "direct" else f"{layer}_{kernel}"


def kind_of(graph: Graph) -> str:
    """Which of KINDS a network is."""
    return "float" if graph.tensors[graph.inputs[0]].dtype == "f32" else f"int8-{graph.rounding}"


@functools.cache
def fitted() -> dict[str, dict[str, Costs]]:
    """Core -> kind -> costs, as they were fitted."""
    found = json.loads(PLACE.read_text(encoding="utf-8"))
    return {
        core: {
            kind: {name: (each[0], each[1], each[2]) for name, each in costs.items()}
            for kind, costs in kinds.items()
        }
        for core, kinds in found.items()
    }


def product_instructions(core: str, kind: str = "float") -> float:
    """Of one product in the plain dense kernel."""
    return fitted()[core][kind]["dense"][0]


def predicted(made: Emission, goal: Target) -> int | None:
    """Instructions of one pass by the model; None where nobody counts them."""
    if goal.counts_as not in fitted():
        return None
    costs = fitted()[goal.counts_as][kind_of(made.graph)]
    total, products = 0.0, 0
    for op in made.graph.ops:
        row = Counted(*work(made.graph, op, made.choices.get(op.writes[0], "direct")), 0)
        total += row.by(costs[row.kernel])
        products += row.products
    return round(total + costs["dense"][0] * max(made.macs - products, 0))


def calibration(kind: str) -> Graph:
    """Layers of many shapes one after the other: windows, strides, depthwise, matrices, and what stands
    between them."""
    rng = np.random.default_rng(18)
    codes = kind != "float"
    dtype = "int8" if codes else "f32"
    tensors: dict[str, Tensor] = {}
    constants: dict[str, npt.NDArray[Any]] = {}
    ops: list[Op] = []

    def tensor(name: str, *shape: int) -> str:
        tensors[name] = Tensor(name, shape, dtype, Quantization((0.05,), -3) if codes else None)
        return name

    def weight(name: str, *shape: int) -> str:
        drawn = rng.integers(-99, 100, shape).astype(np.int8)
        constants[name] = drawn if codes else drawn.astype(np.float32) / 99
        tensors[name] = Tensor(name, shape, dtype, Quantization((0.01,)) if codes else None)
        return name

    x = tensor("x", 12, 12, 3)
    for outputs, side, stride in (
        (8, 3, 1),
        (16, 1, 1),
        (0, 3, 1),
        (12, 3, 2),
        (32, 1, 1),
        (0, 5, 1),
        (8, 1, 1),
    ):
        at, (height, width, channels) = len(ops), tensors[x].shape
        y = tensor(f"y{at}", -(-height // stride), -(-width // stride), outputs or channels)
        pads = ((side // 2, side // 2),) * 2
        if outputs:
            name = weight(f"w{at}", outputs, side, side, channels)
            ops.append(Conv2d(x, name, None, y, stride=(stride, stride), pads=pads))
        else:
            ops.append(DepthwiseConv2d(x, weight(f"w{at}", side, side, channels), None, y, pads=pads))
        x = y
    ops.append(Clamp(x, tensor("clamped", *tensors[x].shape), 0.0, 6.0))
    ops.append(Add(x, "clamped", tensor("added", *tensors[x].shape)))
    ops.append(AveragePool("added", tensor("pooled", 3, 3, 8), (2, 2), (2, 2)))
    ops.append(Mean("pooled", tensor("mean", 8)))
    x = "mean"
    for at, outputs in enumerate((40, 24, 10)):
        y = tensor(f"dense{at}", outputs)
        ops.append(FullyConnected(x, weight(f"m{at}", outputs, tensors[x].size), None, y))
        x = y
    return Graph(
        f"calibration-{kind}", tensors, tuple(ops), ("x",), (x,), constants, rounding=kind[5:] or "fixed"
    )


def counted(goal: Target, kinds: Sequence[str] = KINDS) -> dict[str, list[Counted]]:
    """Kind -> what the emulated board counts of every operation of the calibration networks, with plain and
    with fast kernels. Raises UserError without the board or its compiler."""
    from haversack.embed._variants import fast

    if goal.name == "host" or (reason := goal.missing()) is not None:
        said = "this machine counts no instructions" if goal.name == "host" else reason
        raise UserError(f"{goal.name} cannot be counted: {said}.", field="target", given=goal.name)
    found: dict[str, list[Counted]] = {}
    for kind in kinds:
        graph = calibration(kind)
        rows = []
        for choices in ({}, fast(graph)):
            with tempfile.TemporaryDirectory() as place:
                spent = _spent(graph, choices, goal, Path(place))
            for op, each in zip(graph.ops, spent, strict=True):
                rows.append(Counted(*work(graph, op, choices.get(op.writes[0], "direct")), each))
        found[kind] = rows
    return found


def calibrated(goal: Target) -> tuple[dict[str, Costs], float]:
    """Costs by kind, and the largest relative error of a row of `counted` that they leave."""
    costs: dict[str, Costs] = {}
    worst = 0.0
    for kind, rows in counted(goal).items():
        names = sorted({row.kernel for row in rows})
        fits = {name: fit([row for row in rows if row.kernel == name]) for name in names}
        costs[kind] = {name: (round(a, 3), round(b, 3), round(c, 3)) for name, (a, b, c) in fits.items()}
        worst = max(worst, *(abs(row.by(costs[kind][row.kernel]) / row.instructions - 1) for row in rows))
    return costs, worst


def _spent(graph: Graph, choices: Mapping[str, str], goal: Target, folder: Path) -> list[int]:
    """Instructions of every operation of one pass."""
    from haversack.embed._host import compile_with
    from haversack.embed.tune import marked_texts
    from haversack.embed.verify import printed

    header, source = marked_texts(graph, choices)
    texts = {
        "network.h": header,
        "network.c": source,
        "counts.c": rendered("counts.c.j2", operations=len(graph.ops)),
        "port.h": rendered("port.h.j2"),
        goal.port: rendered(f"{goal.port}.j2"),
        goal.script: rendered(f"{goal.script}.j2", board=goal.board),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    flags = [*STRICT[:2], *goal.flags, "-ffp-contract=off", "-T", str(folder / goal.script)]
    compile_with([goal.compiler, *flags], folder, ["network.c", "counts.c", goal.port], folder / "counts.elf")
    said = printed([*goal.command(), "-kernel", str(folder / "counts.elf")])
    return [int(each) for each in re.findall(r"^spent (\d+)$", said, re.MULTILINE)]
