"""Plain decoding: one step of the model for each token.

Paper: none; the baseline of every other. Cost: all weights are read once a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from haversack.core.method import Method

if TYPE_CHECKING:
    from haversack.run._cache import Cache
    from haversack.run._engine import Engine
    from haversack.run._sampler import Session

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class OneByOne(Method):
    name = "one-by-one"
    stage = "run"
    slot = "decode"
    paper = "-"
    summary = "One step of the model for each token."

    def tokens(
        self, engine: Engine, cache: Cache, logits: F32, session: Session
    ) -> Iterator[tuple[int, float]]:
        """(token, log-probability) of the answer, one after the other, until the cache is full.

        `logits` f32 [1, vocabulary] follow the prompt that `cache` holds.
        """
        while True:
            token, log_probability = session.draw(logits[-1])
            yield token, log_probability
            if cache.length >= cache.capacity:
                return
            following, _ = engine.step((token,), None, None, cache)
            assert following is not None
            logits = following
