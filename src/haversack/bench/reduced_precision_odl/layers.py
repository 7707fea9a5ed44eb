"""Every layer's three steps in 16 bits beside 64 bits, from the same 16-bit numbers; where a whole step's
error comes from.

A step of a layer is its way forward, the gradient of its weights or that of its input. Each takes what stands
there in a 64-bit pass over ResNet8 (trained weights, a picture), rounded to 16 bits, so that its error is its
own. A whole step's gradient (numerics.py) is off by far more, and by its way forward alone: rounding shuts
and opens ReLUs whose sums lie next to 0, and each of them adds or takes away a whole path. The second
measurement holds a whole step's gradient against the 64-bit one through the ReLUs that were open in 16 bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.reduced_precision_odl._bench import bench, resnet8
from haversack.bench.reduced_precision_odl.numerics import (
    BOUNDS,
    exact_pass,
    norm_of,
    pictures,
    whole_step,
    with_way_back,
)
from haversack.embed._train_graph import prepared
from haversack.embed._train_twin import RULES, Twin
from haversack.embed.halves import rounded
from haversack.models.graph import Machine
from haversack.models.graph._execute import KERNELS
from haversack.models.graph._gradients import LABEL, GradInput, GradWeight, Step
from haversack.models.graph._ir import Graph, Linear

Array = npt.NDArray[Any]
KINDS = {"fp16": "f16", "bf16": "bf16"}
LOSS_SCALE = 4096.0
"""What the gradients that f16 sees are multiplied by; relative errors do not change with it."""


class Caught(Twin):
    """A twin that keeps the gradient of a weight and takes no step."""

    gradient: Array

    def changed(self, op: Any, gradient: Array, rate: Any) -> None:
        self.gradient = gradient


def step_errors(graph: Graph, x: Array, label: int, precision: str, sums: str) -> dict[str, float]:
    """The relative error of each step, "forward conv3" and the like."""
    kind = KINDS[precision]
    ready = prepared(graph, "cross-entropy", None, 0)
    whole, names = with_way_back(ready)
    steps = [op for op in whole.ops if isinstance(op, Linear | GradInput | GradWeight)]
    read = dict.fromkeys(name for op in steps for name in op.reads if name not in whole.constants)
    wide = {name: values.astype(np.float64) for name, values in whole.constants.items()}
    feeds = {whole.inputs[0]: x[None].astype(np.float64), LABEL: np.array([label])}
    asked = tuple(name for name in read if name not in feeds)
    values = {**feeds, **Machine(replace(whole, outputs=asked), "none", wide).run(feeds)}
    factor = LOSS_SCALE if kind == "f16" else 1.0
    gradients = {op.gradient for op in steps if isinstance(op, GradInput | GradWeight)}
    given = {name: rounded(values[name] * (factor if name in gradients else 1.0), kind) for name in read}
    held = {name: rounded(array, kind) for name, array in wide.items()}
    tensors = {
        name: replace(tensor, dtype=kind) if tensor.dtype == "f32" else tensor
        for name, tensor in whole.tensors.items()
    }
    twin = Caught(replace(whole, tensors=tensors), held, sums)
    exact = Machine(whole, "none", {name: array.astype(np.float64) for name, array in held.items()})
    weights = {gradient: name for name, gradient in names.items()}
    found = {}
    for op in steps:
        theirs: dict[str, Any] = {name: array.astype(np.float64) for name, array in given.items()}
        KERNELS[type(op)](exact, op, theirs)
        ours: dict[str, Any] = dict(given)
        if isinstance(op, GradWeight):
            RULES[Step](twin, Step(op, op.x, op.gradient, weights[op.y]), ours, np.float32(0))
            name, mine = f"weights of {weights[op.y]}", twin.gradient
        else:
            RULES[type(op)](twin, op, ours)
            way = "forward to" if isinstance(op, Linear) else "inputs by"
            name, mine = f"{way} {op.y}", ours[op.y]
        found[name] = norm_of(mine.ravel() - theirs[op.y].ravel()) / max(
            norm_of(theirs[op.y].ravel()), 1e-300
        )
    return found


@bench.measure(
    *(
        Row(
            f"steps-resnet8-{precision}{'-wide' if sums == 'f32' else ''}",
            f"ResNet8: the largest error of a layer's step (forward, weights, inputs) in {precision}, "
            f"{'sums in 32 bits' if sums == 'f32' else 'sums in 16 bits, two lanes'}",
            "share",
            "quality",
            Bar("<=", BOUNDS[precision]),
            judged="ours",
        )
        for precision in BOUNDS
        for sums in ("same", "f32")
    ),
    *(
        Row(
            f"gradient-resnet8-{precision}-open",
            f"ResNet8: error of a whole step's gradient in {precision}, sums in 32 bits, beside the 64-bit "
            "gradient through the ReLUs that were open in 16 bits",
            "share",
            "quality",
            judged="ours",
        )
        for precision in BOUNDS
    ),
    seconds=60,
)
def layers(run: Run) -> Outcomes:
    rng = np.random.default_rng(run.seed)
    graph, (first, *_) = resnet8(), pictures(rng)
    found: dict[str, Outcome | Unavailable] = {}
    for precision in BOUNDS:
        for sums in ("same", "f32"):
            run.say(f"{precision}, sums {sums}")
            errors = step_errors(graph, *first, precision, sums)
            worst = max(errors, key=lambda name: errors[name])
            note = f"{worst}; the median of {len(errors)} steps is {np.median(list(errors.values())):.2g}"
            end = "-wide" if sums == "f32" else ""
            found[f"steps-resnet8-{precision}{end}"] = Outcome.single(errors[worst], note=note)
        made = whole_step(graph, *first, precision, "f32")
        plain, inside = exact_pass(made.graph, *first)
        opened, _ = exact_pass(made.graph, *first, made.inside)
        differing = [np.bitwise_xor(inside[name], made.inside[name]).astype(np.uint8) for name in inside]
        flipped = sum(int(np.unpackbits(each).sum()) for each in differing)
        found[f"gradient-resnet8-{precision}-open"] = Outcome.single(
            made.error(opened), note=f"{made.error(plain):.2g} beside the plain one; {flipped:,} ReLUs differ"
        )
    return found
