"""Zeroth-order: the whole network learns from the loss of two forward passes a step.

Papers: Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient
approximation" (1992); Malladi et al., "Fine-Tuning Language Models with Just Forward Passes" (arXiv
2305.17333, 2023). The baseline of ElasticZO (arXiv 2501.04287).
What is here: w + eps u, forward; w - eps u, forward; back to w; w <- w - rate g u with
g = (loss+ - loss-) / (2 eps), within -clip..clip. The engine is _spsa.py: directions from counted random
numbers, exact restore, a log from which the training can be played again.
Cost: two forward passes a step and nothing kept between them (with restore=copy, a copy of what learns).
Limits: the estimate's variance grows with the count of numbers that learn, so rates are far below those of
backpropagation and steps are many; f32 networks; no statistics that move while it learns; no randomness in
the passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.train._network import Array, Batch, Network, Wanted, numbers_of
from haversack.train._slots import Learned, Plain, Settings
from haversack.train.gradient._spsa import PIECE, Spsa

NUMBER_BYTES = 32
"""Scratch for one random number while its piece is made."""


def scratch_nbytes(network: Network, wanted: Wanted) -> int:
    """Bytes of the largest piece of random numbers."""
    tensors = network.tensors()
    return NUMBER_BYTES * max((min(PIECE, tensors[name].size) for name in wanted), default=0)


def perturbed(network: Network, wanted: Wanted, settings: Settings, method: Method) -> Spsa:
    """The engine over the tensors of `wanted`; `method` has eps, restore and clip (0: none)."""
    tensors = network.tensors()
    given = vars(method)
    return Spsa(
        {name: tensors[name] for name in wanted},
        eps=given["eps"],
        seed=settings.seed,
        restore=given["restore"],
        clip=given["clip"] or None,
        parts=wanted,
    )


def require_still(network: Network, learned: Learned, settings: Settings, method: str) -> None:
    """Raises UserError where two passes would differ by more than the direction: statistics that move while
    the network learns, or numbers that are not the network's own floats."""
    if hasattr(network, "integer_gradients"):
        raise UserError(
            f"{network.name} is a network of integers, whose weights are too coarse to move by eps; use "
            "gradient elasticzo-int8.",
            field="gradient",
            given=method,
            nearest="elasticzo-int8",
        )
    if learned.moved:
        raise UserError(
            f"{method} needs the same statistics in both passes, and {learned.moved[0]} moves while "
            f"{network.name} learns; choose parameters that freeze the norms.",
            field="gradient",
            given=method,
            nearest="backprop",
        )
    if type(settings.numbers) is not Plain:
        raise UserError(
            f"{method} moves the network's own floats; use precision f32 with it.",
            field="precision",
            given=type(settings.numbers).__name__,
            nearest="f32",
        )


def require_same(first: float, second: float, method: str) -> None:
    """Raises UserError when two passes over the same batch and numbers gave two losses."""
    if first != second and math.isfinite(first) and math.isfinite(second):
        raise UserError(
            f"two passes over the same batch gave the losses {first:.6g} and {second:.6g}: the network draws "
            f"at random in them (dropout without a shared mask), and {method} would learn from the draw; "
            "switch it off.",
            field="gradient",
            given=method,
            nearest="backprop",
        )


def check_perturbation(eps: float, clip: float) -> None:
    """Raises UserError for an eps that is not above 0 or a clip below it."""
    if not eps > 0 or not math.isfinite(eps):
        raise UserError(
            f"eps={eps} is not above 0; the slope is taken over twice that distance.",
            field="eps",
            given=eps,
            nearest=1e-3,
        )
    if not clip >= 0:
        raise UserError(f"clip={clip} is below 0 (0 is no clipping).", field="clip", given=clip, nearest=0)


def floats_only(network: Network) -> bool:
    """Whether everything that can learn is f32 or f64."""
    roles = network.roles()
    kinds = {a.dtype for name, a in network.tensors().items() if roles[name] != "statistic"}
    return kinds <= {np.dtype(np.float32), np.dtype(np.float64)}


@dataclass(frozen=True)
class Zeroth(Method):
    name = "zeroth"
    stage = "train"
    slot = "gradient"
    paper = "Malladi et al., Fine-Tuning Language Models with Just Forward Passes (2023)"
    summary = "The whole network learns from the loss of two forward passes a step."

    exactness: ClassVar[int] = 2
    usual_rate: ClassVar[float] = 5e-4

    eps: float = parameter(1e-3, help="how far the network is moved to either side")
    clip: float = parameter(0.0, help="the largest slope that is used (0: any)")
    restore: str = parameter(
        "grid", allowed=("grid", "copy"), help="how the numbers come back: on a grid of 24 bits, or by a copy"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_perturbation(self.eps, self.clip)

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Gradient."""
        return ("zeroth",) if floats_only(network) else ()

    def plan(self, network: Network, learned: Learned, rows: int) -> tuple[tuple[str, int], ...]:
        """See Gradient."""
        lines = [*network.plan({}, rows), ("random numbers", scratch_nbytes(network, learned.wanted))]
        if self.restore == "copy":
            lines.append(("copy of what is moved", 4 * numbers_of(network, learned.wanted)))
        return tuple(lines)

    def begin(self, network: Network, learned: Learned, settings: Settings) -> ZerothStepper:
        """See Gradient."""
        require_still(network, learned, settings, self.name)
        return ZerothStepper(network, perturbed(network, learned.wanted, settings, self))


class ZerothStepper:
    """See train/_slots.py, Stepper. `spsa.log` is what replays the training."""

    def __init__(self, network: Network, spsa: Spsa) -> None:
        self.network, self.spsa = network, spsa
        self._still = False

    def step(self, batch: Batch, rate: float) -> float:
        """See Stepper. Two passes; a third in the first step, which shows that passes repeat."""
        if not self._still:
            require_same(self.network.loss(batch), self.network.loss(batch), "zeroth")
            self._still = True
        found = self.spsa.estimate_and_update(lambda: self.network.loss(batch), rate)
        return found.loss if found.g is not None else math.nan

    def state(self) -> dict[str, Array]:
        """See Stepper."""
        return self.spsa.state()

    def restore(self, state: Mapping[str, Array]) -> None:
        """See Stepper."""
        self.spsa.set_state(state)
