"""Texts with spans left out, and what was left out: what T5 and its kin were trained to write.

About every seventh token is left out, in spans of three on average, at random. Of each span the text that is
read keeps a sentinel, and the text that is written is each sentinel followed by its span, one more sentinel
and the end. Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer" (2020), section 3.1.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]

SHARE, SPAN = 0.15, 3.0
"""Of the tokens that are left out; the mean length of a span."""


def span_counts(length: int, sentinels: int) -> tuple[int, int]:
    """(tokens left out, spans) of a text of `length` tokens, with at most `sentinels` sentinels."""
    left = min(max(round(length * SHARE), 1), length - 1)
    spans = min(max(round(left / SPAN), 1), left, length - left, sentinels - 1)
    return left, spans


def parts_of_sum(total: int, count: int, rng: np.random.Generator) -> list[int]:
    """`count` whole numbers of at least 1 that add up to `total`, drawn evenly."""
    cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1
    found: list[int] = np.diff(np.concatenate([[0], cuts, [total]])).astype(int).tolist()
    return found


def spans_left_out(
    tokens: I32, sentinels: Sequence[int], end: int, rng: np.random.Generator
) -> tuple[I32, I32]:
    """(the text that is read, the text that is written) of `tokens` i32 [n], n >= 2; `sentinels` in order,
    two at least. Their lengths follow from n alone.
    """
    left, spans = span_counts(len(tokens), len(sentinels))
    kept, gone = parts_of_sum(len(tokens) - left, spans, rng), parts_of_sum(left, spans, rng)
    read: list[int] = []
    written: list[int] = []
    at = 0
    for index, (before, span) in enumerate(zip(kept, gone, strict=True)):
        read += [*tokens[at : at + before].tolist(), sentinels[index]]
        written += [sentinels[index], *tokens[at + before : at + before + span].tolist()]
        at += before + span
    read.append(end)
    written += [sentinels[spans], end]
    return np.asarray(read, np.int32), np.asarray(written, np.int32)


def halves(tokens: I32, end: int) -> tuple[I32, I32]:
    """The first half of `tokens` i32 [n] as the text that is read, the second as the one that is written:
    for a vocabulary without sentinels.
    """
    middle = len(tokens) // 2
    tail = np.asarray([end], np.int32)
    return np.concatenate([tokens[:middle], tail]), np.concatenate([tokens[middle:], tail])


def read_and_written(
    tokens: I32, sentinels: Sequence[int], end: int, rng: np.random.Generator
) -> tuple[I32, I32]:
    """`spans_left_out` where there are sentinels enough, else `halves`."""
    if len(sentinels) < 2:
        return halves(tokens, end)
    return spans_left_out(tokens, sentinels, end, rng)
