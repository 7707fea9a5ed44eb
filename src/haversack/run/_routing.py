"""Which experts a run's tokens went to: an observer that keeps what the routers of its mixtures chose.

trace = RoutingTrace()
engine.observe(trace)
engine.step(tokens, cache=cache)
positions, experts, shares = trace.chosen(0)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from haversack.run.layers.mixture import Routing

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


class RoutingTrace:
    """Keeps every choice, by block, in the order in which tokens were read."""

    def __init__(self) -> None:
        self._kept: dict[int, list[tuple[I32, I32, F32]]] = {}

    def __call__(self, routing: Routing) -> None:
        """Keep what one router chose for the tokens of one call."""
        kept = (routing.positions.copy(), routing.experts.copy(), routing.shares.copy())
        self._kept.setdefault(routing.block, []).append(kept)

    @property
    def blocks(self) -> list[int]:
        """The blocks whose routers were seen."""
        return sorted(self._kept)

    def chosen(self, block: int) -> tuple[I32, I32, F32]:
        """Positions i32 [n], experts i32 [n, top], the highest rated first, and shares f32 [n, top] of all
        tokens that `block` has read. Raises KeyError for a block that read none or has no router."""
        positions, experts, shares = zip(*self._kept[block], strict=True)
        return np.concatenate(positions), np.concatenate(experts), np.concatenate(shares)

    def counts(self, block: int, experts: int) -> I64:
        """How many tokens chose each of the block's `experts`, i64 [experts]."""
        return np.bincount(self.chosen(block)[1].reshape(-1), minlength=experts)

    def clear(self) -> None:
        """Begin anew."""
        self._kept.clear()
