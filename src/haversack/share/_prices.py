"""What an answer costs: prices, bounds on tokens that hold whatever the tokenizer, and whether a server's
count can be true."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from haversack.core.errors import UserError

BYTES_A_TOKEN = 4.0
"""Of usual text; an estimate only where a server counts nothing."""
MOST_BYTES_A_TOKEN = 24.0
"""Longer on average over a text is no tokenizer's: a count below says less than was sent."""
MESSAGE_TOKENS = 32
"""What a chat template adds to one message, at most."""


@dataclass(frozen=True)
class Price:
    """USD for a million tokens read and written."""

    input_usd: float = 0.0
    output_usd: float = 0.0

    def __post_init__(self) -> None:
        for name in ("input_usd", "output_usd"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(
                    f"a price of {value} USD is not possible; prices are 0 or more.",
                    field="price",
                    given=value,
                )

    def cost(self, prompt: float, completion: float) -> float:
        """USD for tokens read and written."""
        return (prompt * self.input_usd + completion * self.output_usd) / 1e6


def read_price(text: str) -> Price:
    """`IN,OUT` in USD for a million tokens, such as `0.15,0.60`. Raises UserError for anything else."""
    try:
        numbers = [float(part) for part in text.split(",")]
        price = Price(*numbers) if len(numbers) == 2 else None
    except (ValueError, UserError):
        price = None
    if price is None:
        raise UserError(
            f"price={text} is not IN,OUT in USD for a million tokens.",
            field="price",
            given=text,
            nearest="0.15,0.60",
        )
    return price


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer. `source`: `server` (its count, which can be true), `estimated` (it counted
    nothing), `disputed` (its count cannot be true; the safe side was taken)."""

    prompt: int
    completion: int
    source: str = "server"


ASKED_WITH = ("messages", "prompt", "tools", "response_format")
"""Fields of a request whose text a model reads."""


def prompt_ceiling(body: dict[str, Any]) -> int:
    """Tokens that a request's prompt has at most: one a byte, and what templates add."""
    messages = body.get("messages") or ()
    told = {name: body.get(name) for name in ASKED_WITH if body.get(name)}
    size = len(json.dumps(told, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return size + MESSAGE_TOKENS * (len(messages) + 1)


def judge_usage(said: Any, *, sent: int, ceiling: int, text_bytes: int, most: int) -> Usage:
    """The usage to charge. `said`: what the server reported; `sent`: bytes of the prompt's texts; `ceiling`:
    most tokens they can be; `text_bytes`: of the answer; `most`: tokens that were allowed.

    A count of whole numbers that the bytes allow is believed. One that is too high for what was sent, or too
    low for what came, is not: then the larger of the estimate by bytes and, within what was allowed, the
    claim.
    """
    guess_in, guess_out = math.ceil(sent / BYTES_A_TOKEN), math.ceil(text_bytes / BYTES_A_TOKEN)
    if not isinstance(said, dict):
        return Usage(min(guess_in, ceiling), guess_out, "estimated")
    prompt, completion = said.get("prompt_tokens"), said.get("completion_tokens")
    if not (
        isinstance(prompt, int) and isinstance(completion, int) and _count(prompt) and _count(completion)
    ):
        return Usage(min(guess_in, ceiling), guess_out, "disputed")
    fair_in = math.floor(sent / MOST_BYTES_A_TOKEN) <= prompt <= ceiling
    fair_out = math.floor(text_bytes / MOST_BYTES_A_TOKEN) <= completion <= max(most, guess_out)
    return Usage(
        prompt if fair_in else min(max(guess_in, prompt), ceiling),
        completion if fair_out else min(max(guess_out, completion), max(most, guess_out)),
        "server" if fair_in and fair_out else "disputed",
    )


def _count(value: Any) -> int | None:
    """A number of tokens, or None for what is none."""
    counts = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53
    return int(value) if counts else None
