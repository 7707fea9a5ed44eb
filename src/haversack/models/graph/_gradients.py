"""The operations of the way back and of a step: they stand in a graph beside those of _ir.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from haversack.models.graph._ir import NO_PADS, Op, Pads

Kind = Literal["conv", "depthwise", "dense"]
LABEL, LOSS, RATE = "label", "loss", "rate"


@dataclass(frozen=True)
class CrossEntropy(Op):
    """The loss of f32 logits in nats, and its gradient."""

    READS = ("x", "label")
    WRITES = ("y", "gradient")
    x: str
    label: str
    y: str
    gradient: str


@dataclass(frozen=True)
class Masked(Op):
    """Through bounds and scale: x where `mask` is set, times `factors` (one, or one for each channel)."""

    READS = ("x", "mask", "factors")
    IN_PLACE = "x"
    x: str
    mask: str | None
    y: str
    factors: str | None = None


@dataclass(frozen=True)
class GradBias(Op):
    """The sum over all places."""

    READS = ("x",)
    x: str
    y: str


@dataclass(frozen=True)
class GradWeight(Op):
    """Correlation of a layer's input and the gradient of its sums.

    With `channels` the input holds only those already; a depthwise one takes those of `gradient` too.
    """

    READS = ("x", "gradient")
    kind: Kind
    x: str
    gradient: str
    y: str
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pads: Pads = NO_PADS
    channels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class GradInput(Op):
    """The gradient of a layer's input, in its codes."""

    READS = ("gradient", "weight")
    kind: Kind
    gradient: str
    weight: str
    y: str
    stride: tuple[int, int] = (1, 1)
    pads: Pads = NO_PADS


@dataclass(frozen=True)
class Rescaled(Op):
    """x times a number: from one scale of codes to another."""

    READS = ("x",)
    IN_PLACE = "x"
    x: str
    y: str
    factor: float


@dataclass(frozen=True)
class PoolGrad(Op):
    """Each number of a window gets its share."""

    READS = ("x",)
    x: str
    y: str
    size: tuple[int, int]
    stride: tuple[int, int]
    pads: Pads = NO_PADS
    factor: float = 1.0


@dataclass(frozen=True)
class Crop(Op):
    """What padding added is taken off."""

    READS = ("x",)
    x: str
    y: str
    pads: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Summed(Op):
    """Two gradients of one tensor, added."""

    READS = ("x", "other")
    IN_PLACE = "x"
    x: str
    other: str
    y: str


@dataclass(frozen=True)
class Kept(Op):
    """Some channels of a tensor, kept for the way back."""

    READS = ("x",)
    x: str
    y: str
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Update(Op):
    """parameter <- parameter - rate * gradient * factors, in place; integers are rounded.

    `factors` f32, one for each output: what the gradient is scaled by before the step.
    """

    READS = ("parameter", "gradient", "factors")
    WRITES = ()
    parameter: str
    gradient: str
    factors: str | None = None
    channels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Step(Op):
    """GradWeight and Update in one: no gradient is ever stored."""

    READS = ("x", "gradient", "parameter", "factors")
    WRITES = ()
    weight_gradient: GradWeight
    x: str
    gradient: str
    parameter: str
    factors: str | None = None
    channels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class BiasStep(Op):
    """GradBias and Update in one."""

    READS = ("gradient", "parameter", "factors")
    WRITES = ()
    gradient: str
    parameter: str
    factors: str | None = None


STEPS = (Update, Step, BiasStep)
"""What changes a parameter."""
