"""Quality of a language model on text: bits per byte, and how often two models choose the same next token.

The functions take anything with the run contract (`step`, `cache`), so they judge a hub folder, a pack and a
plan alike. Logits are looked at a few hundred rows at a time and never kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]

CHUNK = 256  # tokens in one step: 6 MiB of logits at a vocabulary of 6,144


class Scored(Protocol):
    """The part of the run contract that scoring needs."""

    def cache(self, capacity: int) -> Any:
        """An empty cache of `capacity` tokens."""

    def step(self, tokens: I32, positions: I32, mask: None, cache: Any, want: str) -> tuple[Any, Any]:
        """Logits f32 [n, vocabulary] (want "all") or None (want "none"), and the hidden states."""


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `stop` of a text are read; those from `scored` on are predicted from all before
    them.
    """

    start: int
    scored: int
    stop: int


def windows(count: int, window: int, stride: int) -> Iterator[Window]:
    """Windows over `count` tokens: each reads at most `window` of them and predicts at most `stride` new
    ones.

    The first predicts all it reads but its first token; so every token except the first is predicted once,
    with at least `window - stride` tokens before it from the second window on.
    """
    scored = 1
    while scored < count:
        stop = min(window, count) if scored == 1 else min(scored + stride, count)
        yield Window(max(0, stop - window), scored, stop)
        scored = stop


def next_token_logits(
    engine: Scored, tokens: I32, window: int = 2048, stride: int = 1024
) -> Iterator[tuple[F32, I32]]:
    """Pairs of logits f32 [n, vocabulary] and the tokens i32 [n] that came; every token but the first comes
    once.
    """
    tokens = np.ascontiguousarray(tokens, np.int32)
    for view in windows(len(tokens), window, stride):
        cache = engine.cache(view.stop - view.start)
        for start in chunk_starts(view):
            stop = min(start + CHUNK, view.stop - 1)
            if start < view.scored - 1:
                stop = min(stop, view.scored - 1)
            positions = np.arange(start - view.start, stop - view.start, dtype=np.int32)
            wanted = start >= view.scored - 1
            logits, _ = engine.step(
                tokens[start:stop], positions, None, cache, want="all" if wanted else "none"
            )
            if wanted:
                yield logits, tokens[start + 1 : stop + 1]


def chunk_starts(view: Window) -> list[int]:
    """Where the steps over one window begin: CHUNK apart, and once at the token before the first one
    scored.
    """
    lead = view.scored - 1
    return [*range(view.start, lead, CHUNK), *range(lead, view.stop - 1, CHUNK)]


def token_bits(logits: F32, targets: I32) -> NDArray[np.float64]:
    """Bits [n] that each of `targets` [n] costs under the softmax of `logits` [n, vocabulary]."""
    rows = logits - logits.max(axis=-1, keepdims=True)
    chosen = rows[np.arange(len(targets)), targets].astype(np.float64)
    totals = np.exp(rows, out=rows).sum(axis=-1, dtype=np.float64)
    return (np.log(totals) - chosen) / math.log(2.0)


def bits_per_byte(
    engine: Scored, tokens: I32, byte_count: int, window: int = 2048, stride: int = 1024
) -> float:
    """Bits that `engine` needs for each of the `byte_count` bytes that `tokens` i32 [n] stand for.

    Every token but the first is scored, with at least `window - stride` tokens of context once that many
    came.
    """
    total = 0.0
    for logits, targets in next_token_logits(engine, tokens, window, stride):
        total += float(token_bits(logits, targets).sum())
    return total / byte_count


def agreement(first: Scored, second: Scored, tokens: I32, window: int = 2048, stride: int = 1024) -> float:
    """Share of positions at which both engines give the largest logit to the same token."""
    same = seen = 0
    pairs = zip(
        next_token_logits(first, tokens, window, stride),
        next_token_logits(second, tokens, window, stride),
        strict=True,
    )
    for (ours, targets), (theirs, _) in pairs:
        same += int((ours.argmax(axis=-1) == theirs.argmax(axis=-1)).sum())
        seen += len(targets)
    return same / max(seen, 1)
