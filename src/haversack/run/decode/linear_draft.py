"""Linear drafting: a small model proposes some tokens, the large one verifies them all in one step.

Papers: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (2023); Chen et al.,
"Accelerating Large Language Model Decoding with Speculative Sampling" (2023).
What is here: chains of `length` drafted tokens. A step over n tokens has the bits of n steps, so greedy
decoding gives exactly the plain tokens. When sampling, `rejection` (the papers' rule) keeps the distribution:
a draft x is kept with probability min(1, p(x) / q(x)), else the token is drawn from max(p - q, 0),
normalized. `tokens` keeps even the tokens of plain decoding with the same seed: draft and model draw with the
same number, and a draft is kept when both drew the same.
Cost: one step of the large model and `length` of the small one for 1 to length + 1 tokens.
Limits: both models must have the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from haversack.core.method import Method, parameter
from haversack.run._drafting import Drafting, draft_chain, open_draft
from haversack.run._verify import verify_chain

if TYPE_CHECKING:
    from haversack.run._cache import Cache
    from haversack.run._engine import Engine
    from haversack.run._sampler import Session

F32 = npt.NDArray[np.float32]
Drawn = tuple[int, float]


@dataclass(frozen=True)
class LinearDraft(Method):
    name = "linear-draft"
    stage = "run"
    slot = "decode"
    paper = "Leviathan et al. (2023); Chen et al. (2023)"
    summary = "A small model drafts a few tokens, the model verifies them in one step."
    requires = frozenset({"draft-model"})
    excludes = frozenset({"encoder-decoder"})

    draft: str = parameter("", help="bundled name or folder of the draft model")
    length: int = parameter(4, allowed=(1, 2, 3, 4, 5, 6, 7, 8, 12, 16), help="tokens drafted at once")
    sampling: str = parameter(
        "rejection",
        allowed=("rejection", "tokens"),
        help="what sampling keeps: the distribution, or the tokens",
    )

    def prepare(self, engine: Engine) -> None:
        """Open the draft beside the model. Raises UserError when it has another vocabulary."""
        open_draft(engine, self.draft)

    def tokens(self, engine: Engine, cache: Cache, logits: F32, session: Session) -> Iterator[Drawn]:
        """(token, log-probability) of the answer, one after the other, until the cache is full.

        `logits` f32 [1, vocabulary] follow the prompt that `cache` holds.
        """
        small = engine.draft
        assert small is not None
        drafts = small.cache(min(cache.capacity, small.context_length))
        counts = session.drafting = Drafting()
        yield session.draw(logits[-1])
        while cache.length < cache.capacity:
            room = min(cache.capacity - cache.length, session.left, drafts.capacity - session.length + 1)
            began = perf_counter()
            coupled = self._coupled(session)
            count = min(self.length, room - 1)
            chain, shares = draft_chain(small, drafts, session, count, coupled=coupled)
            drafted = perf_counter()
            start = cache.length
            tokens = np.concatenate([session.tokens[-1:], np.asarray(chain, np.int32)])
            rows, _ = engine.step(tokens, None, None, cache, want="all")
            assert rows is not None
            kept = verify_chain(chain, rows, session, None if coupled else shares)
            cache.truncate(start + len(kept))
            drafts.truncate(min(drafts.length, cache.length))
            counts.steps += len(chain)
            counts.drafting_s += drafted - began
            counts.passed(len(chain), len(kept) - 1, perf_counter() - drafted)
            yield from kept

    def _coupled(self, session: Session) -> bool:
        return session.sampler.greedy or self.sampling == "tokens"
