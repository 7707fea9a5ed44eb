"""The slots of stage train, as protocols: a training is one choice of each, and knows methods only so.

`parameters` says what learns and may change the network for it. `gradient` says how a step is found and
taken. `precision` says in which numbers the network learns. `aggregation` is alone. The order is always

    learned = parameters.prepare(network, seed)
    numbers = precision.begin(network, learned)
    stepper = gradient.begin(network, learned, Settings(numbers=numbers, ...))
    loss = stepper.step(batch, rate)            # as often as the training goes
    numbers.finish()

after which the tensors that differ are a delta. To apply a delta, `prepare`, `begin` and `finish` run again
on the base and the values are written between them, so they must do the same each time.

A language model also learns from plain text, without labels, by what a method of `parameters` puts beside
its matrices: `Adapting`, which `prepare` of the same method builds upon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from haversack.models._adapter import Pair
from haversack.models._architecture import Architecture
from haversack.train._network import F32, Array, Batch, Network, Slice, Wanted, assign


@dataclass(frozen=True)
class Learned:
    """What learns in one network. `wanted`: the tensors that steps change, or the part of each, in the order
    of the pass. `moved`: tensors that change without a gradient (statistics of norms that learn)."""

    wanted: Wanted
    moved: tuple[str, ...] = ()


@runtime_checkable
class Parameters(Protocol):
    """A method of the slot parameters."""

    def offers(self, network: Network) -> tuple[str, ...]:
        """The ways of this method that the planner may try on `network`, as the command line writes them
        (`mobiletl:blocks=2`), best first; none where it cannot serve."""

    def prepare(self, network: Network, seed: int) -> Learned:
        """Make `network` ready (exchange layers, add tensors) and say what learns. The classifier
        learns with every method. Raises UserError for a network that it does not fit."""


@runtime_checkable
class Numbers(Protocol):
    """A precision at work in one network."""

    def scaled(self, gradients: Mapping[str, F32]) -> dict[str, F32]:
        """The gradients as a step is to take them."""

    def store(self, name: str, array: Array, values: F32, part: Slice | None) -> None:
        """Write new values of (the part of) a tensor in the numbers that it is kept in."""

    def finish(self) -> None:
        """Bring the network into the form in which it is used: what was kept finer is rounded."""


@runtime_checkable
class Precision(Protocol):
    """A method of the slot precision: what the network computes in while it learns."""

    exactness: int
    """Where its steps stand among those of others: 0 loses nothing, 1 rounds. The planner takes the lowest
    that fits."""

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Parameters."""

    def begin(self, network: Network, learned: Learned) -> Numbers:
        """Raises UserError for a network that it does not fit."""


class Plain:
    """The numbers that a network has by itself."""

    def scaled(self, gradients: Mapping[str, F32]) -> dict[str, F32]:
        """See Numbers."""
        return dict(gradients)

    def store(self, name: str, array: Array, values: F32, part: Slice | None) -> None:
        """See Numbers."""
        assign(array, values, part)

    def finish(self) -> None:
        """See Numbers."""


@dataclass(frozen=True)
class Settings:
    """What a gradient method is told of the training: `steps` in all, `rows` in a step, `seed` for what it
    draws, `numbers` in which tensors are kept."""

    steps: int
    rows: int
    seed: int = 0
    numbers: Numbers = field(default_factory=Plain)


@runtime_checkable
class Stepper(Protocol):
    """A gradient method at work in one network."""

    def step(self, batch: Batch, rate: float) -> float:
        """Change the network once; the loss that the step saw, in nats. Where it is not finite, nothing was
        changed (a method that walks from the network's values has put them back)."""

    def state(self) -> dict[str, Array]:
        """What the next step needs besides the network's tensors: moments, counters. Small and exact."""

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on from `state`: the next step has the same bits as without the interruption."""


@runtime_checkable
class Gradient(Protocol):
    """A method of the slot gradient."""

    exactness: int
    """Where its steps stand among those of others: 0 follows the gradient, 1 in part, 2 estimates it. The
    planner takes the lowest that fits."""
    usual_rate: float
    """The rate of its steps where nobody names one."""

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Parameters."""

    def plan(self, network: Network, learned: Learned, rows: int) -> tuple[tuple[str, int], ...]:
        """What steps of `rows` rows hold beside the network's tensors, as (line, bytes), by the network's
        own `plan` for those tensors that go the way back, and what the method keeps itself."""

    def begin(self, network: Network, learned: Learned, settings: Settings) -> Stepper:
        """Ready for the first step. Raises UserError for what it does not fit."""


@runtime_checkable
class AdapterInTraining(Protocol):
    """What learns beside the matrices of one language model: made by `Adapting.begin`."""

    module: Any
    """An nn.Module; its parameters are what learns."""
    hooks: Any
    """Of models/_blocks_torch.py: how the parameters change a pass through the model."""
    blocks: tuple[int, ...]
    """The blocks that change, rising; nothing below the first needs a gradient."""

    def pairs(self, parameters: Mapping[str, Any]) -> dict[str, Pair]:
        """The change that `parameters` (tensors by the module's names) are, as a LoRA."""


@runtime_checkable
class Adapting(Protocol):
    """A method of the slot parameters that learns beside a language model's matrices."""

    def chosen(self, architecture: Architecture, above: int) -> dict[str, tuple[int, int, int]]:
        """Matrix name -> (block, outputs, inputs) of what changes, none of it in the lowest `above` blocks.

        Raises UserError when the method's own parameters ask for one of these.
        """

    def learned_numbers(self, architecture: Architecture, above: int) -> int:
        """How many numbers learn."""

    def begin(self, architecture: Architecture, above: int, seed: int, device: Any) -> AdapterInTraining:
        """Fresh parameters that change nothing yet. Raises MissingExtraError without PyTorch."""


def part_of(array: Array, part: Slice | None) -> F32:
    """The values of (the part of) a tensor as f32, a copy."""
    return np.array(array if part is None else part.of(array), np.float32)
