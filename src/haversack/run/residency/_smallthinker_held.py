"""SmallThinker's weights while a model runs: matrices of experts in the buffer, and what its layers ask of
it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from haversack.models._experts import Experts
from haversack.run._prediction import NoGuess, Predictor
from haversack.run._residency import CHOSEN, GUESSED
from haversack.run._shelf import Key
from haversack.run._weights import Weights, nbytes
from haversack.run.residency._edgemoe_held import DEFAULT_EXPERTS, ExpertsHeld, Fitted, Room, Sized
from haversack.run.residency.smallthinker import order_of_use

if TYPE_CHECKING:
    from haversack.run.layers.mixture import Routing
    from haversack.run.residency.smallthinker import SmallThinker

GATE, UP, DOWN = range(3)
"""Numbers of the parts of an expert, as keys have them (models/_experts.py, PARTS)."""
DEFAULT_MATRICES = 3 * DEFAULT_EXPERTS
SWITCH_S = 2e-4
"""How long a thread may keep the interpreter while a model is open: by Python's own 5 ms the computing thread
would keep the reading one from beginning its next read until it waits for it."""


class SizedMatrices(Sized):
    """See Sized; of matrices."""

    unbounded = DEFAULT_MATRICES


def sized(method: SmallThinker, parts: Mapping[Key, Sequence[tuple[str, int]]], chosen: int) -> SizedMatrices:
    """See SmallThinker.sized."""
    rooms = {
        (*key, number): Room.sized(part[1], [part])
        for key, own in parts.items()
        for number, part in enumerate(own)
    }
    most = max(len(own) for own in parts.values())
    cold = sum(count * (3 if kind == "int2" else 1) for own in parts.values() for kind, count in own)
    return SizedMatrices(method, rooms, most * chosen, cold)


class FittedMatrices(Fitted):
    """The method for one model."""

    unbounded = DEFAULT_MATRICES

    @staticmethod
    def units_of(experts: Experts) -> Mapping[Key, tuple[str, ...]]:
        """Every matrix of every expert."""
        return experts.matrices

    def open(self, limit: int | None) -> Any:
        """See SmallThinker."""
        total = nbytes(self.source, self.architecture.tensors())
        return MatricesHeld(self, self.buffer_nbytes(limit, self.resident_nbytes(total)))


class MatricesHeld(ExpertsHeld):
    """Everything but the experts bound once, and their matrices in a buffer of `budget` bytes.

    A layer says what it chose (`routed`, `want`), takes `arriving` experts, and each one's matrices by
    `matrix`. `rows_at_once` bounds how many tokens it asks for together.
    """

    _interval: float | None = None

    def __init__(self, fitted: FittedMatrices, budget: int) -> None:
        super().__init__(fitted, budget)
        method = fitted.method
        self.rows_at_once: int = method.micro_batch
        self.neurons_examined = self.neurons_activated = 0
        self.prefetched = 0
        self._early: bool = method.early
        self._order: dict[int, list[int]] = {}
        self._asked = -1  # the block whose matrices were asked for already
        mixtures = (fitted.architecture.blocks[block].mixture for block in self.experts.blocks)
        self._ahead_of_attention = all(one is not None and one.tap == "residual" for one in mixtures)
        self.buffer.shelf.keeps = method.keeps
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(min(self._interval, SWITCH_S))

    def close(self) -> None:
        """See ExpertsHeld."""
        if self._interval is not None:
            sys.setswitchinterval(self._interval)
            self._interval = None
        super().close()

    def _guesser(self) -> tuple[str, Predictor]:
        return "none", NoGuess()

    def routed(self, routing: Routing) -> None:
        """See Experts."""
        self._order[routing.block] = order_of_use(routing.experts.tolist())

    def want(self, block: int, ids: Sequence[int] = (), priority: int = GUESSED) -> None:
        """See Experts: a choice is asked for at once, with `early`."""
        if block not in self._layers or priority < CHOSEN:
            return
        self._asked = -1
        if self._early:
            before = self.buffer.statistics.demands
            self._need(block)
            if self._ahead_of_attention:
                self.prefetched += self.buffer.statistics.demands - before

    def _need(self, block: int) -> None:
        layer, order = self._layers[block], self._order[block]
        first = [(layer, expert, part) for expert in order for part in (GATE, UP)]
        keys = [*first, *((layer, expert, DOWN) for expert in sorted(order))]
        self.buffer.need(layer, [key for key in keys if key in self.fitted.units])
        self._asked = block

    def arriving(self, block: int) -> Iterator[int]:
        """The experts that `block` chose, in the order in which to begin them: those whose gate and up
        matrices are there, then the one that is read next."""
        if self._asked != block:
            self._need(block)
        layer, left = self._layers[block], list(self._order[block])
        while left:
            ready = (e for e in left if all(self._there((layer, e, part)) for part in (GATE, UP)))
            expert = next(ready, left[0])
            left.remove(expert)
            yield expert

    def _there(self, key: Key) -> bool:
        return key not in self.fitted.units or self.buffer.there(key)

    def matrix(self, block: int, expert: int, part: int) -> AbstractContextManager[Weights]:
        """The tensors of one matrix of an expert, valid inside the `with`."""
        return self.buffer.use((self._layers[block], expert, part))

    @contextmanager
    def expert(self, block: int, expert: int) -> Iterator[Weights]:
        """See Held: all matrices of an expert."""
        tensors: dict[str, Any] = {}
        layer = self._layers[block]
        with ExitStack() as stack:
            for part in (GATE, UP, DOWN):
                if (layer, expert, part) in self.fitted.units:
                    tensors |= stack.enter_context(self.matrix(block, expert, part))
            yield tensors
            tensors.clear()

    def examined(self, count: int, above: int) -> None:
        """Of `count` neurons of experts `above` were not 0."""
        self.neurons_examined += count
        self.neurons_activated += above

    def record(self, seconds: float | None = None) -> dict[str, Any]:
        """See ExpertsHeld: of matrices. `prefetched` were begun before attention; neurons are those of
        layers with a ReLU."""
        return {
            **super().record(seconds),
            "unit": "matrix",
            "prefetched": self.prefetched,
            "neurons": {"examined": self.neurons_examined, "activated": self.neurons_activated},
        }

    def words(self, seconds: float | None = None) -> str:
        """The same in two or three lines."""
        found = self.record(seconds)
        lines = [
            f"matrices of experts: {found['asked']} examined, {found['hits']} cached, {found['prefetched']} "
            f"begun before attention, {found['demands'] - found['prefetched']} when chosen",
            self.storage_words(found),
        ]
        if self.neurons_examined:
            share = self.neurons_activated / self.neurons_examined
            lines.append(f"neurons: {self.neurons_examined} examined, {share:.1%} above zero")
        return "\n".join(lines)
