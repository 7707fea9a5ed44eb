"""Sparse output matrix: of every token's logits only those that a small predictor expects to matter.

Paper: Song et al., "SmallThinker: A Family of Efficient Large Language Models Natively Trained for Local
Deployment" (arXiv 2507.20984, 2025), whose released engine has such a predictor.
What is here: plain decoding, but after a step of one token the output matrix meets the hidden state only in
the rows that the predictor in the pack names (run/_head_predictor.py); the others cannot be drawn. The prompt
and answers under a constraint get all their logits.
What we changed: left-out rows get minus infinity; the released engine gives them the logit 0 [inferred].
Cost: the predictor's two products; log-probabilities are among the rows computed.
Limits: it changes answers: where the likeliest token is left out, another is taken. Packs have a predictor
when they were made with --precision q4_0:predictor=RANK.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from haversack.core.method import Method
from haversack.run._head_predictor import HeadPredictor, sparse_logits

if TYPE_CHECKING:
    from haversack.run._cache import Cache
    from haversack.run._engine import Engine
    from haversack.run._sampler import Session

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SparseHead(Method):
    name = "sparse-head"
    stage = "run"
    slot = "decode"
    paper = "SmallThinker (arXiv 2507.20984, 2025)"
    summary = "Only the rows of the output matrix that a predictor names are computed; answers may differ."
    system = 49
    requires = frozenset({"head-predictor"})

    def prepare(self, engine: Engine) -> None:
        """Read the predictor."""
        engine.head_predictor = HeadPredictor.of(engine.model.source, engine.architecture)

    def tokens(
        self, engine: Engine, cache: Cache, logits: F32, session: Session
    ) -> Iterator[tuple[int, float]]:
        """(token, log-probability) of the answer, one after the other, until the cache is full.

        `logits` f32 [1, vocabulary] follow the prompt that `cache` holds.
        """
        predictor = engine.head_predictor
        assert predictor is not None
        sparse = session.constraint is None
        while True:
            yield session.draw(logits[-1])
            if cache.length >= cache.capacity:
                return
            drawn = session.tokens[-1:]
            following, hidden = engine.step(drawn, None, None, cache, "hidden" if sparse else "last")
            if sparse:
                assert hidden is not None
                logits = sparse_logits(engine, predictor, hidden)
            else:
                assert following is not None
                logits = following
