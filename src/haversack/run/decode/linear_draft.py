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
from haversack.run._drafting import Drafting, open_draft
from haversack.run._verify import (
    ACCEPTED,
    DRAFTED,
    REPLACED,
    kept_share,
    log_probability,
    pick,
    remainder,
)

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
            chain, shares = self._draft(small, drafts, session, min(self.length, room - 1))
            drafted = perf_counter()
            start = cache.length
            tokens = np.concatenate([session.tokens[-1:], np.asarray(chain, np.int32)])
            rows, _ = engine.step(tokens, None, None, cache, want="all")
            assert rows is not None
            kept = self._verify(rows, chain, shares, session)
            cache.truncate(start + len(kept))
            drafts.truncate(min(drafts.length, cache.length))
            counts.steps += len(chain)
            counts.drafting_s += drafted - began
            counts.passed(len(chain), len(kept) - 1, perf_counter() - drafted)
            yield from kept

    def _draft(
        self, small: Engine, drafts: Cache, session: Session, count: int
    ) -> tuple[list[int], list[F32]]:
        """Up to `count` drafted tokens, and the distributions they were drawn from (rejection only)."""
        chain: list[int] = []
        shares: list[F32] = []
        sampler = session.sampler
        history = session.tokens
        while len(chain) < count:
            following = np.concatenate([history, np.asarray(chain, np.int32)])
            rows, _ = small.step(following[drafts.length :], None, None, drafts)
            assert rows is not None
            step = session.drawn + len(chain)
            if self._coupled(session):
                chain.append(sampler.draw(rows[-1], following, step)[0])
            else:
                shares.append(sampler.distribution(rows[-1], following))
                chain.append(pick(shares[-1], _number(session, DRAFTED, step)))
        return chain, shares

    def _verify(self, rows: F32, chain: list[int], shares: list[F32], session: Session) -> list[Drawn]:
        """The tokens that the model accepts of `chain`, and the one it says itself after them."""
        found: list[Drawn] = []
        for index, row in enumerate(rows):
            if self._coupled(session):
                drawn = session.draw(row)
                accepted = index < len(chain) and drawn[0] == chain[index]
            else:
                drawn, accepted = self._judge(row, chain, shares, session, index)
                session.add(drawn[0])
            found.append(drawn)
            if not accepted:
                break
        return found

    def _judge(
        self, row: F32, chain: list[int], shares: list[F32], session: Session, index: int
    ) -> tuple[Drawn, bool]:
        """The papers' rule for one position: the draft with probability min(1, p / q), else the remainder."""
        ours, step = session.distribution(row), session.drawn
        if index == len(chain):
            token = pick(ours, _number(session, REPLACED, step))
            return (token, log_probability(row, token)), False
        token, theirs = chain[index], shares[index]
        if _number(session, ACCEPTED, step) < kept_share(float(ours[token]), float(theirs[token])):
            return (token, log_probability(row, token)), True
        token = pick(remainder(ours, theirs), _number(session, REPLACED, step))
        return (token, log_probability(row, token)), False

    def _coupled(self, session: Session) -> bool:
        return session.sampler.greedy or self.sampling == "tokens"


def _number(session: Session, stream: int, step: int) -> float:
    from haversack.kernels.sampling import uniform

    return uniform(session.sampler.seed ^ (stream << 32), step)
