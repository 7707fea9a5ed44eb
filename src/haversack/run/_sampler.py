"""How the next token is chosen: greedily, or drawn from a filtered distribution by a seeded number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.kernels import filter_logits, only_allowed, sample, softmax

if TYPE_CHECKING:
    from haversack.run._constraint import Constraint
    from haversack.run._drafting import Drafts

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Sampler:
    """Filters in this order: repetition penalty, temperature, top-k, top-p, min-p (kernels/sampling.py
    defines them).

    `temperature` 0 takes the likeliest token. `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 are
    off. The number of draw i is a function of (seed, i) alone. Raises UserError for a value outside its
    range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (0.0, 100.0, True),
            "top_k": (0, 1 << 31, True),
            "top_p": (0.0, 1.0, False),
            "min_p": (0.0, 1.0, True),
            "repetition_penalty": (0.0, 100.0, False),
        }
        for name, (least, most, closed) in ranges.items():
            value = getattr(self, name)
            if not (least <= value <= most) or (value == least and not closed) or math.isnan(value):
                above = "from" if closed else "above"
                default = type(self).__dataclass_fields__[name].default
                raise UserError(
                    f"{name}={value:g} is not supported (allowed {above} {least:g} to {most:g}); "
                    f"the default is {default}.",
                    field=name,
                    given=value,
                    nearest=default,
                )

    @property
    def greedy(self) -> bool:
        """True when the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def remembers(self) -> bool:
        """True when tokens already seen matter."""
        return self.repetition_penalty != 1

    def draw(
        self,
        logits: F32,
        history: I32 | None,
        step: int,
        allowed: npt.NDArray[np.bool_] | None = None,
    ) -> tuple[int, float]:
        """Token number `step` of a run from logits f32 [vocabulary], and the natural logarithm of its
        probability under them (of those in `allowed` bool, where that is given). `history` i32: the tokens
        of prompt and answer so far."""
        drawn: tuple[int, float] = sample(
            logits,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            history=history if self.remembers else None,
            seed=self.seed,
            step=step,
            allowed=allowed,
        )
        return drawn

    def distribution(self, logits: F32, history: I32 | None) -> F32:
        """The probabilities f32 [vocabulary] that `draw` draws from; temperature must not be 0."""
        kept = filter_logits(
            logits,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            history=history if self.remembers else None,
        )
        probabilities: F32 = softmax(kept[None])[0]
        return probabilities


class Session:
    """One text under way: its tokens so far and how the next are drawn, by `sampler` among those that
    `constraint` allows. `ended`: how many tokens the answer had when the constraint said that it is complete,
    else None. `drafting`: what a method that drafts has done so far. `broken`: why a decode method ends the
    answer early, in a word."""

    def __init__(
        self, sampler: Sampler, prompt: I32, most: int, constraint: Constraint | None = None
    ) -> None:
        self.sampler = sampler
        self.constraint = constraint
        self.ended: int | None = None
        self.drafting: Drafts | None = None
        self.broken: str | None = None
        self.prompt_length = len(prompt)
        self.most = most
        self._tokens = np.empty(len(prompt) + most + 1, np.int32)
        self._tokens[: len(prompt)] = prompt
        self.length = len(prompt)

    @property
    def tokens(self) -> I32:
        """Prompt and answer so far, i32."""
        return self._tokens[: self.length]

    @property
    def drawn(self) -> int:
        """Tokens of the answer so far."""
        return self.length - self.prompt_length

    @property
    def left(self) -> int:
        """Tokens that the answer may still get."""
        return self.most - self.drawn

    def draw(self, logits: F32) -> tuple[int, float]:
        """Draw the next token from logits f32 [vocabulary] and remember it; returns it and its log-
        probability (under a constraint: among the tokens it allows).
        """
        constraint = self.constraint
        allowed = None if constraint is None or constraint.done else constraint.allowed(self.left)
        token, log_probability = self.sampler.draw(logits, self.tokens, self.drawn, allowed)
        self.add(token)
        return token, log_probability

    def distribution(self, logits: F32) -> F32:
        """The probabilities f32 [vocabulary] that `draw` draws from; the temperature must not be 0."""
        return self.sampler.distribution(self.masked(logits), self.tokens)

    def masked(self, logits: F32) -> F32:
        """`logits` with minus infinity where the constraint does not allow a token."""
        if self.constraint is None or self.constraint.done:  # after the end, what is drawn ahead is dropped
            return logits
        masked: F32 = only_allowed(logits, self.constraint.allowed(self.left))
        return masked

    def add(self, token: int) -> None:
        """Remember `token` as the answer's next."""
        self._tokens[self.length] = token
        self.length += 1
        if self.constraint is not None and not self.constraint.done:
            self.constraint.advance(token)
            if self.constraint.done:
                self.ended = self.drawn
