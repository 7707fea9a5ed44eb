"""Whole prefill: the prompt passes each block in one go, so that every weight is read once.

Paper: none.
What is here: one step over all tokens; inside it, layers see 256 tokens at a time, so that buffers stay
small.
Cost: hidden states of the whole prompt in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from haversack.core.method import Method

if TYPE_CHECKING:
    from haversack.run._cache import Cache
    from haversack.run._engine import Engine

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Whole(Method):
    name = "whole"
    stage = "run"
    slot = "prefill"
    paper = "-"
    summary = "The prompt passes the model in one step."

    def most_at_once(self, prompt: int) -> int:
        """Tokens whose hidden states are in memory together."""
        return prompt

    def prefill(self, engine: Engine, tokens: I32, cache: Cache) -> F32:
        """Read `tokens` i32 [n]; returns the logits f32 [1, vocabulary] after the last."""
        cache.horizon = max(cache.horizon, cache.length + len(tokens))
        cache.sparse_from = max(cache.sparse_from, cache.length + len(tokens))
        return engine.read(tokens, cache)
