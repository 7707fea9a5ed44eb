"""Gradients of a step in 16 bits beside 64 bits, the transforms beside automatic differentiation, counts.

A gradient is read off a step: what the finer copies of the weights changed by, over the rate. ResNet8 has its
trained weights and sees pictures of CIFAR-10's JPEG copies; the small network and its inputs are drawn. The
error is the norm of the difference over all parameters, as a share of the norm. f16 scales its loss by the
first factor of a short list at which no gradient is too large.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.reduced_precision_odl._bench import bench, resnet8, small_cnn
from haversack.embed.train import Recipe, Training, planned
from haversack.models.graph._gradients import LABEL
from haversack.models.graph._ir import Clamp, Graph, Linear

Array = npt.NDArray[Any]
BOUNDS = {"fp16": 0.01, "bf16": 0.06}
LOSS_SCALES = (4096.0, 256.0, 16.0, 1.0)
"""Of f16 the first at which no gradient is too large."""


def norm_of(x: Array) -> float:
    """The root of the sum of squares."""
    return float(np.linalg.norm(x))


def with_way_back(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """The graph of every gradient, and their names by parameter; `graph` as `prepared` gives it."""
    from haversack.models.graph.autodiff import backward, gradients_of, with_loss

    return gradients_of(backward(with_loss(graph)), dict.fromkeys(graph.parameters))


def masks_of(graph: Graph) -> list[str]:
    """What tells which numbers were inside bounds on the way forward."""
    return [op.mask for op in graph.ops if isinstance(op, Linear | Clamp) and op.mask is not None]


def exact_pass(
    graph: Graph, x: Array, label: int, inside: Mapping[str, Array] | None = None
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Gradients and masks, by automatic differentiation in 64 bits; back through `inside` where given."""
    from haversack.models.graph import Machine
    from haversack.models.graph._execute import KERNELS

    whole, names = with_way_back(graph)
    wide = {name: values.astype(np.float64) for name, values in graph.constants.items()}
    machine = Machine(whole, "none", wide)
    masks = masks_of(whole)
    values: dict[str, Any] = {graph.inputs[0]: x[None].astype(np.float64), LABEL: np.array([label])}
    for op in whole.ops:
        KERNELS[type(op)](machine, op, values)
        if inside is not None and isinstance(op, Linear | Clamp) and op.mask is not None:
            values[op.mask] = inside[op.mask]
    return {name: values[names[name]] for name in names}, {name: values[name] for name in masks}


@dataclass(frozen=True)
class Whole:
    """A whole step: `graph` with the weights as they were held, the gradients that were taken, the masks."""

    graph: Graph
    gradients: dict[str, Array]
    inside: dict[str, Array]

    def error(self, exact: Mapping[str, Array]) -> float:
        """Over all parameters, as a share."""
        ours = np.concatenate([self.gradients[name].ravel() for name in exact])
        theirs = np.concatenate([each.ravel() for each in exact.values()])
        return norm_of(ours - theirs) / norm_of(theirs)


def whole_step(graph: Graph, x: Array, label: int, precision: str, sums: str) -> Whole:
    """A step at the weights as `precision` holds them."""
    from haversack.embed._train_graph import prepared

    for scale in LOSS_SCALES if precision == "fp16" else (1.0,):
        recipe = Recipe(master=precision != "fp32", loss_scale=scale)
        twin = planned(graph, Training("all", precision=precision, sums=sums, recipe=recipe)).twin()
        masks = masks_of(twin.graph)
        twin.graph = replace(twin.graph, outputs=(*twin.graph.outputs, *masks))
        before = {name: values.copy() for name, values in twin.parameters.items()}
        values = twin.run({graph.inputs[0]: x, LABEL: label}, 1.0)
        if not twin.skipped:
            break
    after = twin.finer if recipe.master else twin.parameters
    ready = prepared(graph, "cross-entropy", None, 0)
    return Whole(
        replace(ready, constants={**ready.constants, **before}),
        {name: before[name].astype(float) - after[name] for name in ready.parameters},
        {name: values[name] for name in masks},
    )


def error_of(graph: Graph, x: Array, label: int, precision: str, sums: str) -> float:
    """The relative error of a whole step's gradient, at the weights as `precision` holds them."""
    made = whole_step(graph, x, label, precision, sums)
    return made.error(exact_pass(made.graph, x, label)[0])


def pictures(rng: np.random.Generator) -> list[tuple[Array, int]]:
    """Three pictures as ResNet8 takes them. Raises Unavailable without them."""
    from haversack.core._datasets import local_path
    from haversack.formats.pictures import read_folder, read_picture, unpacked

    place = local_path("cifar-10")
    if place is None:
        raise Unavailable("cifar-10 is not in the folder that HAVERSACK_DATA names")
    folder = read_folder(unpacked(place))
    chosen = rng.choice(len(folder.files), 3, replace=False)
    return [
        (read_picture(folder.files[at], 32, 32).astype(np.float32), int(folder.labels[at])) for at in chosen
    ]


@bench.measure(
    *(
        Row(
            f"gradient-{net}-{precision}{'-wide' if sums == 'f32' else ''}",
            f"{net}: error of a step's gradient in {precision}, "
            f"{'sums in 32 bits' if sums == 'f32' else 'sums in 16 bits, two lanes'}",
            "share",
            "quality",
            Bar("<=", BOUNDS[precision]) if sums == "same" else None,
            judged="ours",
            quick=net == "small" and sums == "same",
        )
        for net in ("resnet8", "small")
        for precision in BOUNDS
        for sums in ("same", "f32")
    ),
    seconds=60,
    quick_seconds=8,
)
def gradients(run: Run) -> Outcomes:
    rng = np.random.default_rng(run.seed)
    found: dict[str, Any] = {}
    drawn = [(rng.uniform(0, 1, (8, 8, 1)).astype(np.float32), int(rng.integers(10))) for _ in range(3)]
    nets = {"small": (small_cnn(), drawn)}
    if not run.quick:
        try:
            nets["resnet8"] = (resnet8(), pictures(rng))
        except Unavailable as missing:
            ends = (f"{precision}{wide}" for precision in BOUNDS for wide in ("", "-wide"))
            found |= {f"gradient-resnet8-{end}": missing for end in ends}
    for net, (graph, inputs) in nets.items():
        for precision in BOUNDS:
            for sums in ("same", "f32"):
                if run.quick and sums == "f32":
                    continue
                run.say(f"{net}, {precision}, sums {sums}")
                errors = [error_of(graph, x, label, precision, sums) for x, label in inputs]
                end = "-wide" if sums == "f32" else ""
                note = f"of {len(errors)} inputs {', '.join(f'{each:.2g}' for each in sorted(errors))}"
                found[f"gradient-{net}-{precision}{end}"] = Outcome.single(
                    float(np.median(errors)), note=note
                )
    return found


@bench.measure(
    Row("input-gradient", "the transform of the gradient and the kernel turned round give the gradient "
        "of a convolution's input, in 64 bits", "share", "quality", Bar("<=", 1e-6), judged="ours"),
    Row("matrix-bits", "a convolution as a product of matrices beside the direct one, on integers",
        "numbers that differ", "quality", Bar("==", 0), judged="ours"),
    Row("macs-resnet8", "products of ResNet8's way forward", "products", "quality", Bar("==", 12_501_632),
        judged="ours", published=12_501_632, quick=True),
    Row("macs-forward", "products of the published test layer, forward and gradient of weights, each",
        "products", "quality", Bar("==", 36_864), judged="ours", published=36_864, quick=True),
    Row("macs-input", "its gradient of inputs as a product of matrices", "products", "quality",
        Bar("==", 57_600), judged="ours", published=57_600, quick=True),
    seconds=10,
    quick_seconds=4,
)  # fmt: skip
def counts(run: Run) -> Outcomes:
    from haversack.embed._train_twin import spread_gradient
    from haversack.embed.halves import Numbers
    from haversack.models.graph import _backward, _forward, plan

    rng = np.random.default_rng(run.seed)
    worst = 0.0
    for kernel, stride, pads in ((3, 1, (1, 1)), (3, 2, (0, 1)), (1, 2, (0, 0)), (5, 1, (2, 2))):
        shape, around = (9, 10, 4), (pads, pads)
        sides = [(side + sum(pads) - kernel) // stride + 1 for side in shape[:2]]
        g, weight = rng.normal(size=(*sides, 6)), rng.normal(size=(6, kernel, kernel, 4))
        theirs = _backward.conv_input(g[None], weight, shape, (stride, stride), around)[0]
        seen = spread_gradient(g, (kernel, kernel), shape, (stride, stride), around, np.float64)
        turned = weight[:, ::-1, ::-1].transpose(3, 1, 2, 0)
        ours = (seen.reshape(len(seen), -1) @ turned.reshape(4, -1).T).reshape(shape)
        worst = max(worst, float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)))
    x = rng.integers(-128, 128, (1, 10, 10, 8)).astype(np.float32)
    weight = rng.integers(-128, 128, (8, 3, 3, 8)).astype(np.float32)
    columns = _forward.patches(x, (3, 3), (1, 1), ((0, 0), (0, 0))).reshape(-1, 72)
    matrix = Numbers().dots(columns, weight.reshape(8, -1))
    direct = np.zeros((8, 8, 8))
    for row in range(8):
        for column in range(8):
            direct[row, column] = np.einsum("ijc,oijc->o", x[0, row : row + 3, column : column + 3], weight)
    found: dict[str, Any] = {
        "input-gradient": Outcome.single(worst, note="four kernels, strides 1 and 2"),
        "matrix-bits": Outcome.single(int((matrix.reshape(8, 8, 8) != direct).sum())),
        "macs-forward": Outcome.single(columns.shape[0] * weight.size),
        "macs-input": Outcome.single(10 * 10 * weight.size),
    }
    try:
        found["macs-resnet8"] = Outcome.single(plan.products(resnet8())["forward"])
    except Unavailable as missing:
        found["macs-resnet8"] = missing
    return found
