"""ElasticZO: the first layers learn from two forward passes, the last few by the way back.

Paper: Sugiura and Matsutani, "ElasticZO: A Memory-Efficient On-Device Learning with Combined Zeroth- and
First-Order Optimization" (arXiv 2501.04287, 2025); no code of the authors was found. Defaults and the names
of its variants are recalled, not checked.
What is here: blocks 1..C learn by zeroth order, the `backprop_layers` blocks above by the way back:
  1. w_l + eps u_l for l <= C, forward: loss+     2. w_l - eps u_l, forward: loss-
  3. the way back of the second pass through blocks L..C+1; block C+1's input gets no gradient
  4. w_l again, bit for bit; g = (loss+ - loss-) / (2 eps), within -clip..clip
  5. w_l <- w_l - share rate g u_l for l <= C;  w_l <- w_l - rate gradient_l for l > C.
`backprop_layers=0` is full zeroth order, `all` plain SGD (the same bits as backprop). A step is judged by
both passes' mean loss. `backward` says whose pass the way back follows: `minus`, as in the paper, `plus`, or
`clean`, a third pass at w itself: the others' gradient is taken eps u away, harmless for small eps.
What we changed: the split is between blocks, none of which a residual connection crosses; restoring is exact
(_spsa.py); a step whose loss or gradient is not finite changes nothing.
Cost: two passes; errors, gradients and kept outputs of the last blocks alone.
Limits: as zeroth.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from haversack.core.errors import UserError, not_allowed, unknown_name
from haversack.core.method import Method, parameter
from haversack.train._network import F32, Array, Batch, Network, Wanted, numbers_of
from haversack.train._slots import Learned, Settings, part_of
from haversack.train.gradient._spsa import Spsa
from haversack.train.gradient.zeroth import (
    check_perturbation,
    floats_only,
    perturbed,
    require_same,
    require_still,
    scratch_nbytes,
)

SIDES = {"plus": 1, "minus": -1, "clean": 0}


def split(network: Network, wanted: Wanted, layers: str, first: str | None) -> tuple[Wanted, Wanted]:
    """What learns by zeroth order, and what by the way back: the last `layers` blocks that learn ("all":
    every one), or those from the block `first` on. Raises UserError for a number or a name that the network
    does not have, a tensor's name, which may lie inside a residual block, included."""
    learning = {
        name: tensors for name, tensors in network.blocks.items() if any(one in wanted for one in tensors)
    }
    names = list(learning)
    if first is not None:
        inside = next((name for name, tensors in network.blocks.items() if first in tensors), None)
        if inside is not None and first not in names:
            raise UserError(
                f"split={first} lies in the block {inside}, which is not taken apart; use split={inside}.",
                field="split",
                given=first,
                nearest=inside,
            )
        if first not in names:
            raise unknown_name("block", first, names, field="split")
        above = names[names.index(first) :]
    else:
        count = len(names) if layers == "all" else int(layers)
        if count > len(names):
            raise UserError(
                f"backprop_layers={count} is more than the {len(names)} blocks of {network.name} that learn.",
                field="backprop_layers",
                given=count,
                nearest=len(names),
            )
        above = names[len(names) - count :]
    last = {tensor for name in above for tensor in learning[name]}
    low = {name: part for name, part in wanted.items() if name not in last}
    return low, {name: part for name, part in wanted.items() if name in last}


def sgd(array: Array, gradient: F32, rate: float) -> F32:
    """array - rate gradient."""
    change = np.array(gradient, np.float32)
    change *= np.float32(-rate)
    change += array
    return change


@dataclass(frozen=True)
class ElasticZO(Method):
    name = "elasticzo"
    stage = "train"
    slot = "gradient"
    paper = "Sugiura and Matsutani, ElasticZO (2025)"
    summary = "The first layers learn from two forward passes, the last few by the way back."
    system = 31

    exactness: ClassVar[int] = 1
    usual_rate: ClassVar[float] = 0.05

    backprop_layers: str = parameter(
        "2", help="blocks at the end that learn by the way back: a count, or all"
    )
    split: str | None = parameter(None, help="in its place: the first block that learns by the way back")
    share: float = parameter(0.01, help="the zeroth-order rate, as a share of the rate")
    eps: float = parameter(1e-3, help="how far the network is moved to either side")
    clip: float = parameter(0.0, help="the largest slope that is used (0: any)")
    backward: str = parameter(
        "minus", allowed=("minus", "plus", "clean"), help="the pass that the way back follows"
    )
    restore: str = parameter(
        "grid", allowed=("grid", "copy"), help="how the numbers come back: on a grid of 24 bits, or by a copy"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backprop_layers != "all" and not self.backprop_layers.isdecimal():
            raise not_allowed("backprop_layers", self.backprop_layers, (0, 1, 2, 3, "all"))
        if not 0 < self.share < math.inf:
            raise UserError(
                f"share={self.share} is not above 0.", field="share", given=self.share, nearest=0.01
            )
        check_perturbation(self.eps, self.clip)

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Gradient."""
        if not floats_only(network) or len(network.blocks) < 2:
            return ()
        return tuple(f"elasticzo:backprop_layers={count}" for count in (2, 1) if count < len(network.blocks))

    def plan(self, network: Network, learned: Learned, rows: int) -> tuple[tuple[str, int], ...]:
        """See Gradient."""
        low, last = split(network, learned.wanted, self.backprop_layers, self.split)
        lines = [*network.plan(last, rows), ("gradients", 4 * numbers_of(network, last))]
        if low:
            lines.append(("random numbers", scratch_nbytes(network, low)))
            if self.restore == "copy":
                lines.append(("copy of what is moved", 4 * numbers_of(network, low)))
        return tuple(line for line in lines if line[1])

    def begin(self, network: Network, learned: Learned, settings: Settings) -> ElasticStepper:
        """See Gradient."""
        low, last = split(network, learned.wanted, self.backprop_layers, self.split)
        if low:
            require_still(network, learned, settings, self.name)
        return ElasticStepper(self, network, perturbed(network, low, settings, self), last, settings)


class ElasticStepper:
    """See train/_slots.py, Stepper. `spsa.log` replays what learned by zeroth order."""

    def __init__(
        self, method: ElasticZO, network: Network, spsa: Spsa, last: Wanted, settings: Settings
    ) -> None:
        self.method, self.network, self.spsa, self.last = method, network, spsa, last
        self.numbers = settings.numbers
        self._still = not spsa.tensors

    def step(self, batch: Batch, rate: float) -> float:
        """See Stepper."""
        if not self._still:
            require_same(self.network.loss(batch), self.network.loss(batch), "elasticzo")
            self._still = True
        losses: dict[int, float] = {}
        gradients: dict[str, F32] = {}
        back = SIDES[self.method.backward]
        with self.spsa.moving():
            for side in (1, -1) if self.spsa.tensors else ():
                self.spsa.move(side)
                if side == back and self.last:
                    losses[side], gradients = self.network.gradients(batch, self.last)
                else:
                    losses[side] = self.network.loss(batch)
        if self.last and (back == 0 or not self.spsa.tensors):
            losses[0], gradients = self.network.gradients(batch, self.last)
        gradients = self.numbers.scaled(gradients)
        finite = all(np.isfinite(each).all() for each in gradients.values())
        if not finite or not all(map(math.isfinite, losses.values())):
            self.spsa.skip()
            return math.nan
        tensors = self.network.tensors()
        for name, part in self.last.items():
            new = sgd(part_of(tensors[name], part), gradients[name], rate)
            self.numbers.store(name, tensors[name], new, part)
        if not self.spsa.tensors:
            return losses[0]
        found = self.spsa.settle(losses[1], losses[-1], rate * self.method.share)
        return found.loss

    def state(self) -> dict[str, Array]:
        """See Stepper."""
        return self.spsa.state()

    def restore(self, state: Mapping[str, Array]) -> None:
        """See Stepper."""
        self.spsa.set_state(state)
