"""Texts that others write and a batch verifies, round by round: each round drafts some tokens, the model says
which it accepts and adds one of its own.

A text waits in its slot between rounds, its keys and values in place. A round is one part of the batch's next
step, beside everybody else's tokens. The tokens are those of plain decoding, or, by rejection, of its
distribution (run/_verify.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.run._jobs import Ask, Job
from haversack.run._sampler import Session
from haversack.run._verify import Drawn, verify_chain

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

LONGEST = 16
"""Tokens that a round may draft."""
ROWS_DUE = 68
"""Tokens of rounds in one step: those of four texts with as many drafts as may be."""


@dataclass(frozen=True)
class Rounds:
    """How a text is verified. `begins`: where the answer begins in the ask's prompt, whose rest was written
    before. `rejection`: drafts were drawn from the distributions of the batch's own draft model. `tell` hears
    `("read", None)` when the first round may begin at once, `("verdict", Verdict)` after each round and
    `("over", reason)` at the end, on the batch's thread."""

    begins: int
    tell: Callable[[str, Any], None]
    rejection: bool = False


@dataclass(frozen=True)
class Verdict:
    """What a round gave: the first `accepted` drafts, then a token of the model's own; `drawn` are all of
    them with their natural log-probabilities. `seconds`: since the round came."""

    accepted: int
    drawn: list[Drawn]
    seconds: float


class RoundsJob(Job):
    """A text that is verified. The last of its tokens is read with the round that follows it."""

    def __init__(self, ask: Ask) -> None:
        super().__init__(ask)
        assert ask.rounds is not None
        self.rounds: Rounds = ask.rounds
        self.chain: I32 | None = None
        """The round that waits to be verified."""
        self.put_at = 0.0

    @property
    def reading(self) -> bool:
        """True until all but the last token have been read."""
        return self.read < len(self.ask.prompt) - 1

    @property
    def left(self) -> int:
        """Tokens that the answer may still get."""
        return 0 if self._session is None else self._session.left

    @property
    def tokens_of_round(self) -> I32:
        """What the step reads: the text's last token and the drafts."""
        assert self.chain is not None
        return np.concatenate([self.history[-1:], self.chain])

    def begin(self, tokenizer: Any, context: int) -> None:
        """See Job.begin."""
        ask, begins = self.ask, self.rounds.begins
        self._session = Session(ask.sampler, ask.prompt[:begins], ask.limits.max_tokens)
        for token in ask.prompt[begins:].tolist():
            self._session.add(token)

    def put(self, chain: I32) -> None:
        """A round has come."""
        self.chain, self.put_at = chain, time.monotonic()

    def judge(self, rows: F32, drafted: F32 | None) -> Verdict:
        """Verify the round by the model's logits `rows` f32 [n + 1, vocabulary], and by the draft's where
        they were drawn from those."""
        session, chain = self._session, self.chain
        assert session is not None and chain is not None
        ids = chain.tolist()
        shares = None if drafted is None else shares_of(session, ids, drafted)
        drawn = verify_chain(ids, rows, session, shares)
        self.tokens += [token for token, _ in drawn]
        self.chain = None
        return Verdict(len(drawn) - 1, drawn, time.monotonic() - self.put_at)


def shares_of(session: Session, chain: Sequence[int], rows: F32) -> list[F32]:
    """The distributions f32 [vocabulary] that the tokens of `chain` were drawn from, by the draft model's
    logits `rows` f32 [>= n, vocabulary]: each after the text and the drafts before it."""
    history = session.tokens
    return [
        session.sampler.distribution(
            rows[place], np.concatenate([history, np.asarray(chain[:place], np.int32)])
        )
        for place in range(len(chain))
    ]
