"""A graph that learns: a float head for new classes, the compiled step, and the same graph in floats.

Source: Lin, Zhu, Chen, Wang, Gan and Han, "On-Device Training Under 256KB Memory" (arXiv 2206.15472, 2022).
What is here: `with_head` puts a linear layer on the floats that the features stand for in place of the
classifier; `compiled` makes of a graph and of what shall learn in it a static schedule with a plan of memory
that runs steps of one example or several; `in_floats` is the network that the codes stand for, which learns
in f32: the reference. `split` cuts a graph in two, so that what does not change is computed once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.models.graph import plan
from haversack.models.graph._execute import Machine
from haversack.models.graph._gradients import LABEL, LOSS, RATE
from haversack.models.graph._integer import Rounding
from haversack.models.graph._ir import (
    Add,
    Clamp,
    Conv2d,
    Dequantize,
    FullyConnected,
    Graph,
    Linear,
    Op,
    Reshape,
    Tensor,
    names_in,
)
from haversack.models.graph.autodiff import Channels, backward, pruned, with_loss

Array = npt.NDArray[Any]
HEAD = ("head.weight", "head.bias")
LOGITS = "logits"


def with_head(graph: Graph, classes: int | None, seed: int) -> Graph:
    """`graph` with a fresh f32 layer of `classes` outputs in the place of its last linear one; None keeps
    what the old one computes, in floats."""
    last = graph.linears()[-1]
    ops = list(graph.ops[: graph.ops.index(last)])
    features = graph.tensors[last.x]
    tensors, constants = dict(graph.tensors), dict(graph.constants)
    for name in (LOGITS, *HEAD):
        tensors.pop(name, None)
    x = features.name
    if len(features.shape) > 1:
        tensors["features.flat"] = replace(features, name="features.flat", shape=(features.size,))
        ops.append(Reshape(x, "features.flat"))
        x = "features.flat"
    if features.quantization is not None:
        tensors["features"] = Tensor("features", (features.size,), "f32")
        ops.append(Dequantize(x, "features"))
        x = "features"
    if classes is None:
        weight, bias = (_real(graph, name) for name in (last.weight, last.bias))
        weight, classes = weight.reshape(len(weight), -1), len(weight)
    else:
        generator = np.random.default_rng([seed, 0x4EAD])
        weight = generator.normal(0, 0.01, (classes, features.size)).astype(np.float32)
        bias = np.zeros(classes, np.float32)
    for name, values in zip(HEAD, (weight, bias), strict=True):
        tensors[name], constants[name] = Tensor(name, values.shape, "f32"), values
    tensors[LOGITS] = Tensor(LOGITS, (classes,), "f32")
    ops.append(FullyConnected(x, *HEAD, LOGITS))
    return _used(
        replace(
            graph,
            tensors=tensors,
            ops=tuple(ops),
            constants=constants,
            outputs=(LOGITS,),
            parameters=(*(name for name in graph.parameters if name not in HEAD), *HEAD),
        )
    )


def split(graph: Graph, at: str) -> tuple[Graph, Graph]:
    """What computes the tensor `at`, and what goes on from it. Raises ValueError where something else crosses
    that place too."""
    number = next(i for i, op in enumerate(graph.ops) if at in op.writes) + 1
    first = _used(replace(graph, ops=graph.ops[:number], outputs=(at,)))
    rest = replace(graph, ops=graph.ops[number:], inputs=(at,), tensors=dict(graph.tensors))
    return first, _used(rest)


def in_floats(graph: Graph) -> Graph:
    """The network that the codes stand for: f32 weights, biases and activations, bounds where the codes' own
    are a layer's activation (a zero point at an end)."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in graph.tensors.items():
        tensors[name] = Tensor(name, tensor.shape, "f32")
    constants: dict[str, Array] = {}
    for name in graph.constants:
        constants[name] = _real(graph, name)
    ops: list[Op] = []
    for op in graph.ops:
        if isinstance(op, Dequantize):
            ops.append(Reshape(op.x, op.y))
        elif isinstance(op, Linear | Add | Clamp):
            low, high = _real_bounds(graph, op)
            ops.append(dataclasses.replace(op, low=low, high=high))
        elif hasattr(op, "low"):
            ops.append(dataclasses.replace(op, low=-np.inf, high=np.inf))  # type: ignore[call-arg]
        else:
            ops.append(op)
    return replace(graph, tensors=tensors, constants=constants, ops=tuple(ops))


def _real(graph: Graph, name: str | None) -> Array:
    """The floats that a constant stands for."""
    assert name is not None
    values, codes = graph.constants[name], graph.tensors[name].quantization
    real = values.astype(np.float64)
    if codes is not None:
        shape = [1] * values.ndim
        if codes.axis is not None:
            shape[codes.axis] = -1
        real = (real - codes.zero) * codes.array().reshape(shape)
    return real.astype(np.float32)


def _real_bounds(graph: Graph, op: Linear | Add | Clamp) -> tuple[float, float]:
    codes = graph.tensors[op.y].quantization
    if codes is None:
        return op.low, op.high
    low, high = max(op.low, -128), min(op.high, 127)
    active = low >= codes.zero
    return (
        ((low - codes.zero) * codes.scale, (high - codes.zero) * codes.scale)
        if active
        else (
            -np.inf,
            np.inf,
        )
    )


def _used(graph: Graph) -> Graph:
    """Tensors and constants that nothing names are left out."""
    names = names_in(graph.ops) | set(graph.inputs) | set(graph.outputs)
    return replace(
        graph,
        tensors={name: tensor for name, tensor in graph.tensors.items() if name in names},
        constants={name: values for name, values in graph.constants.items() if name in names},
        parameters=tuple(name for name in graph.parameters if name in names),
    )


@dataclass(frozen=True)
class TrainingPlan:
    """A compiled step. `parameters` are its own copies, which steps change; integers of `latent` "float" are
    held in f64 and rounded by every pass."""

    graph: Graph
    arena: plan.Arena
    parameters: dict[str, Array] = field(repr=False)
    rounding: Rounding | None = None
    narrow_gradients: bool = False

    @functools.cached_property
    def machine(self) -> Machine:
        return Machine(self.graph, self.rounding, self.parameters, narrow_gradients=self.narrow_gradients)

    @property
    def input(self) -> str:
        return next(name for name in self.graph.inputs if name != LABEL)

    def step(self, inputs: Array, labels: Array, rate: float) -> float:
        """One pass forward, back and of updates: `inputs` [rows, ...] codes (or floats), `labels` i64 [rows].
        The loss before the step, in nats.

        Raises UserError for inputs of another shape, for a label that the head has no output for, and for a
        loss that is not finite; nothing has changed then.
        """
        shape = self.graph.tensors[self.input].shape
        if inputs.shape[1:] != shape or len(inputs) != len(labels):
            raise UserError(
                f"a step takes rows of {' x '.join(map(str, shape))} with a label each, and got "
                f"{list(inputs.shape)} with {len(labels)}.",
                field="data",
                given=list(inputs.shape),
                nearest=list(shape),
            )
        classes = self.graph.tensors[self.graph.outputs[0]].shape[0]
        beyond = [int(label) for label in labels if not 0 <= label < classes]
        if beyond:
            raise UserError(
                f"the label {beyond[0]} is beyond the head, which has {classes} outputs.",
                field="data",
                given=beyond[0],
                nearest=classes - 1,
            )
        feeds = {self.input: inputs, LABEL: labels, RATE: rate}
        try:
            return float(self.machine.run(feeds)[LOSS])
        except FloatingPointError as error:
            raise UserError(f"{error}; lower the rate.", field="rate", given=rate) from error

    @property
    def peak_sram(self) -> int:
        """Bytes of RAM for one example: the arena and what learns."""
        return self.arena.nbytes + plan.parameter_nbytes(self.graph)

    @property
    def flash(self) -> int:
        """Bytes of weights and tables; code is not counted."""
        return plan.flash_nbytes(self.graph)

    @property
    def macs(self) -> dict[str, int]:
        """Multiplications of one step by `forward` and `backward`."""
        return plan.products(self.graph)


def compiled(
    graph: Graph,
    wanted: Mapping[str, Channels | None],
    *,
    factors: Mapping[str, Any] | None = None,
    latent: str = "int8",
    rounding: Rounding | None = None,
    narrow_gradients: bool = False,
) -> TrainingPlan:
    """The step of `graph`, whose output are f32 logits, that updates `wanted`: parameter -> input channels,
    None for all. `factors`: what gradients are scaled by (parameter -> f32 [outputs])."""
    steps = plan.reordered(plan.fused(pruned(backward(with_loss(graph)), wanted, factors=factors)))
    parameters: dict[str, Array] = {}
    for name in wanted:
        values = graph.constants[name]
        finer = latent == "float" and np.issubdtype(values.dtype, np.integer)
        parameters[name] = values.astype(np.float64 if finer else values.dtype)
    found = plan.arena(plan.lifetimes(steps))
    return TrainingPlan(steps, found, parameters, rounding, narrow_gradients)


def conv_names(graph: Graph) -> tuple[tuple[str, str | None], ...]:
    """Weight and bias of every convolution in order, the classifier left out: what indices of sparse updates
    count."""
    last = graph.linears()[-1]
    return tuple((op.weight, op.bias) for op in graph.linears() if isinstance(op, Conv2d) and op is not last)
