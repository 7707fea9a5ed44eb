"""Chunked prefill: the prompt passes the model some tokens at a time, in bounded memory.

Paper: Agrawal et al., "Sarathi-Serve" (2024) for the idea of chunks.
What is here: steps of `tokens` tokens, all but the last without logits. The bits are those of a whole
prefill.
Cost: weights are read once a chunk, which matters when they are streamed.
Limits: none of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter

if TYPE_CHECKING:
    from haversack.run._cache import Cache
    from haversack.run._engine import Engine

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Chunked(Method):
    name = "chunked"
    stage = "run"
    slot = "prefill"
    paper = "Agrawal et al., Sarathi-Serve (2024)"
    summary = "The prompt passes the model in chunks, in bounded memory."
    excludes = frozenset({"encoder-decoder"})

    tokens: int = parameter(256, help="tokens in one chunk")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < 1:
            raise UserError(
                f"tokens={self.tokens} is not supported (allowed 1 and more); use tokens=1.",
                field="tokens",
                given=self.tokens,
                nearest=1,
            )

    def most_at_once(self, prompt: int) -> int:
        """Tokens whose hidden states are in memory together."""
        return min(prompt, self.tokens)

    def prefill(self, engine: Engine, tokens: I32, cache: Cache) -> F32:
        """Read `tokens` i32 [n]; returns the logits f32 [1, vocabulary] after the last."""
        cache.horizon = max(cache.horizon, cache.length + len(tokens))
        cache.sparse_from = max(cache.sparse_from, cache.length + len(tokens))
        starts = range(0, len(tokens), self.tokens)
        for start in starts[:-1]:
            engine.step(tokens[start : start + self.tokens], None, None, cache, want="none")
        logits, _ = engine.step(tokens[starts[-1] :], None, None, cache, want="last")
        assert logits is not None
        return logits
