"""Times in a transcript: which tokens may come next, and what segments a text with times falls into.

Radford et al. (2022), section 2.3: times stand in pairs around each segment, 20 ms apart, and a text begins
with one. Which rules force that, and where the next window begins, are those of its authors' decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from haversack.models.audio._generation import Rules

F32 = npt.NDArray[np.float32]

STEP_S = 0.02
FRAMES_A_STEP = 2
NEVER = np.float32(-np.inf)


@dataclass(frozen=True)
class Segment:
    """What is said from `start` to `end`, seconds from the beginning of the sound; `tokens` without times."""

    start: float
    end: float
    tokens: tuple[int, ...]


def allow(scores: F32, written: Sequence[int], rules: Rules, times: bool) -> None:
    """Put -inf where `scores` f32 [vocabulary] belong to tokens that may not follow `written`, in place."""
    if not written and rules.first_suppressed:
        scores[list(rules.first_suppressed)] = NEVER
    if rules.suppressed:
        scores[list(rules.suppressed)] = NEVER
    if times:
        allow_times(scores, written, rules)


def allow_times(scores: F32, written: Sequence[int], rules: Rules) -> None:
    """The rules of times, in place: pairs, never earlier than the last, one first, and a time wherever all
    times together are likelier than any other token."""
    first = rules.first_time
    assert first is not None and rules.no_times is not None
    scores[rules.no_times] = NEVER
    last = bool(written) and written[-1] >= first
    before = len(written) < 2 or written[-2] >= first
    if last and before:
        scores[first:] = NEVER
    elif last:
        scores[: rules.ends[0] if rules.ends else first] = NEVER
    found = [token for token in written if token >= first]
    if found:
        scores[first : found[-1] + (0 if last and not before else 1)] = NEVER
    if not written:
        scores[:first] = NEVER
        if rules.latest_first_time is not None:
            scores[first + rules.latest_first_time + 1 :] = NEVER
    wide = scores.astype(np.float64)
    top = wide[first:].max(initial=-np.inf)
    if np.isfinite(top):
        together = top + np.log(np.exp(wide[first:] - top).sum())
        if together > wide[:first].max(initial=-np.inf):
            scores[:first] = NEVER


def segments(tokens: Sequence[int], rules: Rules, offset: int, frames: int) -> tuple[list[Segment], int]:
    """The segments of a window's `tokens`, and how many frames on the next window begins.

    The window begins at frame `offset` (10 ms each) and has `frames` of sound. Where two times stand beside
    one another a segment ends; what follows the last such pair is left for the next window, unless a single
    time ends the text. A text without such a pair is one segment.
    """
    first = rules.first_time
    assert first is not None
    is_time = [token >= first for token in tokens]
    single = is_time[-2:] == [False, True]
    ends = [i + 1 for i in range(len(tokens) - 1) if is_time[i] and is_time[i + 1]]
    begin_s = offset / FRAMES_A_STEP * STEP_S
    if not ends:
        last = frames // FRAMES_A_STEP
        times = [token for token in tokens if token >= first]
        if times and times[-1] != first:
            last = times[-1] - first
        return [Segment(begin_s, begin_s + last * STEP_S, _said(tokens, first))], frames
    if single:
        ends.append(len(tokens))
    else:
        ends[-1] += 1
    found: list[Segment] = []
    begin = 0
    for index, end in enumerate(ends):
        part = tokens[begin:end]
        closing = part[-1 if index < len(ends) - 1 or single else -2]
        start_s, end_s = (begin_s + (token - first) * STEP_S for token in (part[0], closing))
        found.append(Segment(start_s, end_s, _said(part, first)))
        begin = end
    return found, frames if single else (tokens[begin - 2] - first) * FRAMES_A_STEP


def _said(tokens: Sequence[int], first: int) -> tuple[int, ...]:
    return tuple(token for token in tokens if token < first)
