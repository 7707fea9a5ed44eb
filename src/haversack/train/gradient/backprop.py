"""Backprop: the gradient by the way back through the network, and SGD or Adam.

Papers: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors" (1986); Kingma
and Ba, "Adam" (arXiv 1412.6980, 2015). The baseline of the slot.
What is here: with g the gradient as the precision hands it on and r the rate,

    sgd     v <- momentum v + g,   w <- w - r v          (momentum 0 keeps no v)
    adam    m <- b1 m + (1 - b1) g,  s <- b2 s + (1 - b2) g^2,
            w <- w - r m / (1 - b1^t) / (sqrt(s / (1 - b2^t)) + e)

with b1 = 0.9, b2 = 0.999, e = 1e-8. `head` multiplies the rate of the classifier, which often begins anew
while all below it is learned already.
Cost: what the way back keeps of the way forward, one gradient for each number that learns, one moment for
momentum, two for Adam. Limits: none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.train._network import F32, Array, Batch, Network, head_of, numbers_of
from haversack.train._slots import Learned, Settings, part_of

B1, B2, EPSILON = 0.9, 0.999, 1e-8


def momentum_step(gradient: F32, moment: F32, momentum: float) -> F32:
    """v <- momentum v + g, in `moment`; what is taken times the rate."""
    moment *= np.float32(momentum)
    moment += gradient
    return moment.copy()


def adam_step(gradient: F32, first: F32, second: F32, step: int) -> F32:
    """Adam's direction at `step` (from 1); its means move in `first` and `second`."""
    first += np.float32(1 - B1) * (gradient - first)
    second += np.float32(1 - B2) * (np.square(gradient) - second)
    root = np.sqrt(second / np.float32(1 - B2**step))
    root += np.float32(EPSILON)
    found: F32 = first / (np.float32(1 - B1**step) * root)
    return found


@dataclass(frozen=True)
class Backprop(Method):
    name = "backprop"
    stage = "train"
    slot = "gradient"
    paper = "Rumelhart et al., Learning representations by back-propagating errors (1986)"
    summary = "The gradient by the way back through the network, and SGD or Adam."

    exactness: ClassVar[int] = 0

    rule: str = parameter("sgd", allowed=("sgd", "adam"), help="how a gradient becomes a step")
    momentum: float = parameter(0.0, help="of sgd: the share of the last step that goes on, 0 to below 1")
    head: float = parameter(1.0, help="the classifier's rate, as a multiple of the rate")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise UserError(
                f"momentum={self.momentum} is not from 0 to below 1.",
                field="momentum",
                given=self.momentum,
                nearest=0.9,
            )
        if self.momentum and self.rule == "adam":
            raise UserError(
                "adam has its own moments; leave momentum out.",
                field="momentum",
                given=self.momentum,
                nearest=0,
            )
        if not (self.head > 0 and math.isfinite(self.head)):
            raise UserError(f"head={self.head} is not above 0.", field="head", given=self.head, nearest=1.0)

    @property
    def usual_rate(self) -> float:
        """See Gradient."""
        return 0.001 if self.rule == "adam" else 0.005 if self.momentum else 0.01

    @property
    def moments(self) -> int:
        """Numbers kept from step to step for each one that learns."""
        return 2 if self.rule == "adam" else int(self.momentum > 0)

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Gradient. Networks whose arithmetic is whole numbers alone have no gradients for it; and Adam's
        steps have one size whatever a gradient's scale: too small for int8."""
        if hasattr(network, "integer_gradients"):
            return ()
        if any(array.dtype == np.int8 for array in network.tensors().values()):
            return ("backprop:momentum=0.9", "backprop")
        return ("backprop:rule=adam", "backprop:momentum=0.9", "backprop")

    def plan(self, network: Network, learned: Learned, rows: int) -> tuple[tuple[str, int], ...]:
        """See Gradient."""
        nbytes = 4 * numbers_of(network, learned.wanted)
        lines = (("gradients", nbytes), ("moments", self.moments * nbytes))
        return network.plan(learned.wanted, rows) + tuple(line for line in lines if line[1])

    def begin(self, network: Network, learned: Learned, settings: Settings) -> BackpropStepper:
        """See Gradient."""
        return BackpropStepper(self, network, learned, settings)


class BackpropStepper:
    """See train/_slots.py, Stepper."""

    def __init__(self, method: Backprop, network: Network, learned: Learned, settings: Settings) -> None:
        self.method, self.network, self.wanted = method, network, learned.wanted
        self.numbers = settings.numbers
        self._head = frozenset(head_of(network))
        self._done = 0
        self._moments: dict[str, list[F32]] = {}

    def step(self, batch: Batch, rate: float) -> float:
        """See Stepper. A gradient that is not finite counts as a loss that is not."""
        loss, found = self.network.gradients(batch, self.wanted)
        gradients = self.numbers.scaled(found)
        if not (math.isfinite(loss) and all(np.isfinite(each).all() for each in gradients.values())):
            return math.nan
        self._done += 1
        tensors = self.network.tensors()
        for name, part in self.wanted.items():
            change = self._direction(name, gradients.pop(name))
            change *= np.float32(-rate * (self.method.head if name in self._head else 1.0))
            change += part_of(tensors[name], part)
            self.numbers.store(name, tensors[name], change, part)
        return loss

    def _direction(self, name: str, gradient: F32) -> F32:
        if not self.method.moments:
            return np.array(gradient, np.float32)
        kept = self._moments.get(name)
        if kept is None:
            kept = self._moments[name] = [np.zeros_like(gradient) for _ in range(self.method.moments)]
        if self.method.rule == "adam":
            return adam_step(gradient, kept[0], kept[1], self._done)
        return momentum_step(gradient, kept[0], self.method.momentum)

    def state(self) -> dict[str, Array]:
        """See Stepper."""
        found: dict[str, Array] = {"done": np.array(self._done, np.int64)}
        for name, kept in self._moments.items():
            found |= {f"moment{number}:{name}": array for number, array in enumerate(kept)}
        return found

    def restore(self, state: Mapping[str, Array]) -> None:
        """See Stepper."""
        self._done = int(state["done"])
        self._moments = {}
        for key in sorted(key for key in state if key.startswith("moment")):
            self._moments.setdefault(key.partition(":")[2], []).append(np.array(state[key], np.float32))
