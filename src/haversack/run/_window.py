"""What a layer with a window keeps of a text: the entries that its tokens still see, and some before them.

A token of such a layer sees the last `size` positions (and the `sink` first entries). The layer has room for
size - 1 entries and a slack; when it is full, those that are still seen, and some before them, move down to
its beginning. What is not held is never read: a step that would see it is refused before it writes anything,
and a text that is cut back further than `Cache.reach` is read again from its beginning. Attention is told
where entries lie and not where they stand, so the bits are those of a cache that keeps everything.

Cost: at most size + 255 entries moved every 128 tokens, the read of two tokens or so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from haversack.core.errors import UserError
from haversack.kernels import CacheLayer, cache_gather
from haversack.models._architecture import Architecture

if TYPE_CHECKING:
    from haversack.run._step import Step

BACK = 256
"""Entries before the seen ones that stay, so that a text can be cut back by as many."""
ROOM = 128
"""Tokens that follow one another before entries move again."""
STEP = 256
"""Tokens without a mask that pass a layer at once, at most."""
LOST = 1 << 40
"""The shift of layers whose entries were being moved when something came between."""


@dataclass(frozen=True)
class Window:
    """A token sees the last `size` positions, its own included, and the `sink` first entries."""

    size: int
    sink: int = 0

    def entries(self, capacity: int, back: int = BACK) -> int:
        """Entries that a layer has room for, where the text has at most `capacity`."""
        return min(capacity, self.sink + self.size - 1 + max(back + ROOM, STEP))


Windows = Sequence[Window | None]
"""Of every block: what its layer keeps; None for everything."""


def windows_of(architecture: Architecture, attention: Any = None) -> Windows:
    """What the layers keep when `attention` fills run: attention (None: dense); methods that do not say it
    by `keeps(layer)` need everything.
    """
    if attention is None:
        from haversack.run.attention.dense import Dense

        attention = Dense()
    keeps = getattr(attention, "keeps", None)
    layers = [block.attention for block in architecture.blocks]
    return [None if keeps is None or layer is None else keeps(layer) for layer in layers]


def whole(architecture: Architecture) -> Windows:
    """Every layer keeps everything."""
    return [None] * len(architecture.blocks)


def cache_nbytes(
    architecture: Architecture, windows: Windows, capacity: int, cache_type: str, back: int = BACK
) -> int:
    """Bytes of keys, values and scales of a cache of `capacity` tokens."""
    written = {block.index for block in architecture.writing}
    return sum(
        block.attention.cache_nbytes(
            capacity if window is None else window.entries(capacity, back), cache_type
        )
        for block, window in zip(architecture.blocks, windows, strict=True)
        if block.attention is not None and block.index in written
    )


class Stretch:
    """Which entries the layers of one `window` hold: the `sink` first, and from `base` on all others, each
    `shift` places before its own number.

    Layers move one after the other while a step passes them, so each has its own shift; `shift` is that of
    the furthest, or of where the step under way will take them.
    """

    __slots__ = ("_shifts", "_steps", "back", "room", "shift", "window")

    def __init__(self, window: Window, capacity: int, back: int) -> None:
        self.window, self.back = window, back
        self.room = window.entries(capacity, back)
        self.shift = 0
        self._shifts: dict[int, int] = {}
        self._steps: list[Step] = []

    def shift_of(self, block: int) -> int:
        """How far the entries of the layer of `block` have moved."""
        return self._shifts.get(block, 0)

    @property
    def base(self) -> int:
        """The first entry behind the sink that all layers hold."""
        return self.window.sink + self.shift

    @property
    def least(self) -> int:
        """The shortest length, beyond that of the sink, to which a text can be cut back and go on."""
        return 0 if self.shift == 0 else self.base + self.window.size - 1

    def reach(self, length: int) -> int:
        """The longest beginning of `length` entries that the layers can be cut back to."""
        return length if length >= self.least else min(length, self.window.sink)

    def plan(self, steps: Sequence[Step]) -> None:
        """Decide what the layers will hold when each of `steps`, one text's in order, passes them.

        Raises UserError, and changes nothing, when a token would see what is not held.
        """
        window, shift, found = self.window, self.shift, []
        if shift and steps[0].start <= window.sink:  # a text from its beginning
            shift = self.shift = 0
            self._shifts.clear()
        for step in steps:
            end = step.start + len(step.positions)
            if end - shift > self.room:
                latest = min(step.start, int(step.positions.min())) - (window.size - 1) - window.sink
                shift = max(end - self.room, latest - self.back)
                if shift > latest:
                    self._refuse(shift + window.sink, step)
            inner = step if shift == 0 else step.within(window.size, window.sink, shift)
            if inner is None:
                self._refuse(shift + window.sink, step)
            found.append(inner)
        self.shift, self._steps = shift, found

    def step(self, block: int, layer: CacheLayer | None, index: int) -> Step:
        """The planned step number `index` as the layer of `block` sees it, which is given room for it."""
        step = self._steps[index]
        held = self._shifts.get(block, 0)
        if step.shift != held:
            assert layer is not None
            sink, moved = self.window.sink, step.shift - held
            aim, self.shift = self.shift, LOST
            cache_gather(layer, sink, np.arange(sink + moved, step.start + moved))
            self._shifts[block] = step.shift
            self.shift = aim
        return step

    def _refuse(self, base: int, step: Step) -> NoReturn:
        oldest = max(0, int(step.positions.min()) - self.window.size + 1)
        held = "no entries any more" if base >= LOST else f"the entries from {base} on"
        raise UserError(
            f"layers with a window of {self.window.size} hold {held} and this step sees those from {oldest} "
            "on; cut the cache to 0 and read the text again, or make it with whole=True.",
            field="cache",
            given=self.back,
        )


def stretches_of(windows: Windows, capacity: int, back: int) -> dict[int, Stretch]:
    """The stretch of each block whose layer holds less than `capacity` entries; layers of one window share
    theirs."""
    shared: dict[Window, Stretch] = {}
    found = {}
    for index, window in enumerate(windows):
        if window is not None and window.entries(capacity, back) < capacity:
            found[index] = shared.setdefault(window, Stretch(window, capacity, back))
    return found
