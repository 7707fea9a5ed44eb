"""What one step knows beside its tokens: where they stand, what they see, and their rotary tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.kernels import CacheLayer, Visible, rope_write
from haversack.models._architecture import Positions
from haversack.models._rope import Rope
from haversack.models._rotary import rotary_tables
from haversack.run._cache import Cache

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


class Step:
    """n tokens at `positions` i32 [n], whose keys and values become the cache entries `start` to `start` + n.

    `held` are the positions of the entries before them; None says that every entry, the new ones included,
    stands at its own index. `mask` bool [n, m + n] says which of the last m entries and of the new tokens
    each sees, beside all entries before those (None: itself and all before it). `horizon`: see Cache. `reads`
    bool [n]: tokens that read row-sparse weights whole (None: no token does). `prompt` is what a sparse
    attention method knows of the prompt that the tokens belong to (None: they see all). Entries of a layer
    with a window lie `shift` places before their own numbers, see `within`. Tables are made when a block
    first asks, and serve all blocks.
    """

    __slots__ = (
        *("_tables", "_visible", "held", "horizon", "mask", "positions", "prompt", "reads", "shift", "start"),
    )

    def __init__(
        self,
        positions: I32,
        start: int,
        mask: Mask | None = None,
        held: I32 | None = None,
        horizon: int = 0,
    ) -> None:
        self.positions = positions
        self.start = start
        self.mask = mask
        self.held = held
        self.horizon = horizon
        self.shift = 0
        self.reads: Mask | None = None
        self.prompt: Any = None
        self._tables: dict[int, tuple[F32, F32]] = {}
        self._visible: dict[tuple[int | None, int], Visible] = {}

    def tables(self, rope: Rope) -> tuple[F32, F32]:
        """Cosine and sine f32 [n, rope.width / 2] of the step's positions."""
        found = self._tables.get(id(rope))
        if found is None:
            self._tables[id(rope)] = found = rotary_tables(rope, self.positions, self.horizon)
        return found

    def visible(self, window: int | None, sink: int = 0) -> Visible:
        """What each token sees: the last `window` positions, its own included (None: all), and always the
        `sink` first entries."""
        found = self._visible.get((window, sink))
        if found is None:
            self._visible[window, sink] = found = self._look(window, sink)
        return found

    def within(self, window: int, sink: int, shift: int) -> Step | None:
        """The same tokens in a layer that holds the `sink` first entries, and those from sink + shift on in
        the places behind them; None when, of the last `window` positions, a token would see another."""
        base, positions, held, mask = sink + shift, self.positions, self.held, self.mask
        first = int(positions[0]) if len(positions) == 1 else int(positions.min())
        if base > self.start:
            return None
        newest = base - 1 if held is None else int(held[sink:base].max())
        if newest >= first - (window - 1):
            return None
        if held is not None or sink:
            stands = np.arange(self.start, dtype=np.int32) if held is None else held
            held = np.concatenate([stands[:sink], stands[base:]])
        start = self.start - shift
        if mask is not None and mask.shape[1] > start - sink + len(
            positions
        ):  # it speaks of entries not held
            begin = self.start + len(positions) - mask.shape[1]
            mask = np.concatenate([mask[:, : max(0, sink - begin)], mask[:, base - begin :]], axis=1)
        step = Step(positions, start, mask, held, self.horizon)
        step.shift, step.reads, step.prompt, step._tables = shift, self.reads, self.prompt, self._tables
        return step

    def write(
        self, q: F32, k: F32, v: F32, cos: F32 | None, sin: F32 | None, cache: CacheLayer, **norms: Any
    ) -> None:
        """Norm and turn q and k f32 [n, heads, d] in place and write k and v to the cache: see
        `rope_write`."""
        rope_write(q, k, v, cos, sin, cache, self.start, **norms)

    def _look(self, window: int | None, sink: int) -> Visible:
        positions = self.positions
        before = self.start if self.mask is None else self.start + len(positions) - self.mask.shape[1]
        if window is None or int(positions.max()) < window:
            return Visible(before, None, self.mask)
        oldest = positions.astype(np.int64) - (window - 1)
        if self.held is None and self.mask is None and sink == 0:
            return Visible(self.start, (oldest - self.shift).clip(0), None)
        held = np.arange(self.shift, self.shift + self.start) if self.held is None else self.held
        stands = np.concatenate([held, positions])
        seen = stands[None, :] >= oldest[:, None]
        seen[:, : min(sink, len(stands))] = True
        new = np.tri(len(positions), dtype=bool) if self.mask is None else self.mask
        seen[:, before:] &= new
        return Visible(0, None, seen)


def checked_positions(
    positions: I32, mask: Mask | None, learned: Positions | None = None, held: int = 0
) -> None:
    """Raises UserError when `positions` are not i32 [n] from 0 on or `mask` is not bool [n, m + n] with m at
    most the `held` entries, or when there is no vector for a position in the table `learned`.
    """
    if positions.ndim != 1 or positions.size == 0 or int(positions.min()) < 0:
        raise UserError("a step takes at least one position, none below 0.", field="positions")
    if learned is not None and int(positions.max()) >= learned.count - learned.offset:
        last = learned.count - learned.offset - 1
        raise UserError(
            f"the model has learned the positions 0 to {last}, not {int(positions.max())}; give it a shorter "
            "text.",
            field="positions",
            given=int(positions.max()),
            nearest=last,
        )
    if mask is not None and not (
        mask.dtype == np.bool_
        and mask.ndim == 2
        and len(mask) == len(positions)
        and len(positions) <= mask.shape[1] <= held + len(positions)
    ):
        raise UserError(
            f"mask must be bool of shape [{len(positions)}, {len(positions)}], or wider by as many of the "
            f"{held} entries held as it is to cover.",
            field="mask",
            given=list(mask.shape),
        )


def is_linear(cache: Cache, positions: I32) -> bool:
    """True when, after these tokens, every entry of `cache` stands at its own index."""
    start, count = cache.length, len(positions)
    if not cache.linear or positions[0] != start or positions[-1] != start + count - 1:
        return False
    return count <= 2 or bool((positions == np.arange(start, start + count, dtype=np.int32)).all())


def split(cache: Cache, positions: I32, mask: Mask | None, most: int) -> list[tuple[slice, Step]]:
    """The steps that read `positions` after what `cache` holds, `most` tokens each (all at once with a
    mask).
    """
    linear = is_linear(cache, positions)
    most = len(positions) if mask is not None else most
    found = []
    for begin in range(0, len(positions), most):
        part = slice(begin, min(begin + most, len(positions)))
        start = cache.length + begin
        held = None if linear else cache.positions[:start]
        found.append((part, Step(positions[part], start, mask, held, cache.horizon)))
    return found
