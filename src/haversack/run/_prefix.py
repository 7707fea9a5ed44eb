"""What one text has read, kept for the next: a turn of a chat reads only what is new.

Keys and values of a token depend on nothing after it, so a cache cut back to the common beginning of two
prompts is, bit for bit, the cache of that beginning read alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from haversack.run._cache import Cache
    from haversack.run._engine import Engine

I32 = npt.NDArray[np.int32]


class Prefix:
    """The cache of a conversation. `reused`: tokens that the last text did not have to read."""

    def __init__(self) -> None:
        self.reused = 0
        self._cache: Cache | None = None
        self._tokens: I32 = np.empty(0, np.int32)
        self._prompt = 0

    def begin(self, engine: Engine, prompt: I32) -> tuple[Cache, I32]:
        """The cache, cut back to what it shares with `prompt` i32 [n], and the tokens left to read (one at
        least).

        Rotary scalings that look at a text's length, contexts that choose what to read, and attention that
        looks at a whole prompt, share nothing, nor do texts that part before what layers with a window still
        hold.
        """
        if self._cache is None:
            self._cache = engine.cache(engine.context_length)
        shared = min(len(self._tokens), len(prompt) - 1)
        differ = np.flatnonzero(self._tokens[:shared] != prompt[:shared])
        shared = int(differ[0]) if differ.size else shared
        if not self._sharable(engine):
            shared = 0
        if engine.tally:  # an answer was written sparse, and would now be read whole
            shared = min(shared, self._prompt)
        self._prompt = len(prompt)
        shared = self._cache.reach(shared)
        self._cache.truncate(shared)
        self._tokens = prompt[:shared].copy()  # what holds even if reading the rest is interrupted
        self.reused = shared
        return self._cache, prompt[shared:]

    def keep(self, tokens: I32) -> None:
        """Remember `tokens` as what the cache holds, as far as it holds them."""
        assert self._cache is not None
        self._tokens = tokens[: self._cache.length].copy()

    @staticmethod
    def _sharable(engine: Engine) -> bool:
        if engine.slots.context.name != "tokens" or engine.reader is not None:
            return False
        ropes = [block.attention.rope for block in engine.architecture.blocks if block.attention is not None]
        ends = [rope.changes_at() for rope in ropes if rope is not None]
        return all(end is None or engine.context_length <= end for end in ends)
