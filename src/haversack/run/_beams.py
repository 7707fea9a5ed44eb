"""Beam search: the likeliest text among several that are written side by side.

Paper: none that is first; the form here, with its length penalty and its rule for stopping, is that of the
hub's library, so that the same model writes the same text.
What is here: `beams` texts at a time; of all their continuations the best 2 * beams (more where several
tokens end a text) are looked at; those among the first `beams` that end are finished, the best `beams`
that do not go on. A text's score is the sum of its log-probabilities over its length to the power of the
penalty.
Cost: one step of `beams` tokens for each token; all texts share one cache, in which each sees its own
entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Step = Callable[[Sequence[int], Sequence[int]], F32]
"""(parent of each text, its next token) -> logits f32 [beams, vocabulary]."""

LOW = np.float32(-1e9)


@dataclass
class Finished:
    """The best texts that ended: (score, tokens, whether it is one), `beams` of them."""

    texts: list[tuple[float, list[int], bool]] = field(default_factory=list)

    def add(self, found: list[tuple[float, list[int], bool]], beams: int) -> None:
        """Keep the best `beams` of those there are and `found`."""
        self.texts = sorted(self.texts + found, key=lambda text: -text[0])[:beams]


def log_softmax(logits: F32) -> F32:
    """Log-probabilities f32 [n, vocabulary] of logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    found: F32 = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(
        np.float32
    )
    return found


def best(scores: F32, count: int) -> npt.NDArray[np.int64]:
    """Indices of the `count` largest of `scores`, largest first; the earlier of equals first."""
    count = min(count, len(scores))
    kept = np.argpartition(-scores, count - 1)[:count] if count < len(scores) else np.arange(len(scores))
    return kept[np.lexsort((kept, -scores[kept]))]


def beam_search(
    logits: F32,
    step: Step,
    allow: Callable[[F32, Sequence[int]], None],
    *,
    beams: int,
    ends: Sequence[int],
    room: int,
    length_penalty: float = 1.0,
    early_stopping: bool = False,
) -> list[int]:
    """The tokens written after a prompt whose `logits` f32 [vocabulary] are given, without the one that ends.

    `allow(scores, written)` puts -inf where tokens may not follow; `room`: most tokens.
    """
    written: list[list[int]] = [[] for _ in range(beams)]
    scores = np.full(beams, LOW, np.float32)
    scores[0] = 0.0
    finished = Finished([(float(LOW), [], False)] * beams)
    rows = np.repeat(logits[None], beams, axis=0)
    keep = max(2, 1 + len(ends)) * beams
    improving = True
    for length in range(1, room + 1):
        chances = log_softmax(rows)
        for row, text in zip(chances, written, strict=True):
            allow(row, text)
        flat = (chances + scores[:, None]).reshape(-1)
        chosen = best(flat, keep)
        parents, tokens = np.divmod(chosen, chances.shape[1])
        ending = np.isin(tokens, np.asarray(ends, np.int64)) | (length >= room)
        texts = [[*written[parent], int(token)] for parent, token in zip(parents, tokens, strict=True)]
        # Texts that end, among the first `beams`, with the penalty of their length.
        full = early_stopping and all(done for _, _, done in finished.texts)
        ended = []
        for index, text in enumerate(texts):
            done = bool(ending[index]) and index < beams
            score = float(flat[chosen[index]]) / length**length_penalty
            score += float(LOW) * (int(full) + int(not improving) + int(not done))
            ended.append((score, text, done))
        onward: F32 = (flat[chosen] + ending * LOW).astype(np.float32)
        going = best(onward, beams)
        scores = onward[going]
        finished.add(ended, beams)
        written = [texts[index] for index in going]
        worst = min(score for score, _, _ in finished.texts)
        reachable = float(scores[0]) / length**length_penalty
        improving = improving and any(
            reachable > (worst if done else float(LOW)) for _, _, done in finished.texts
        )
        stop = early_stopping and all(done for _, _, done in finished.texts)
        if not improving or stop or bool(ending.all()):
            break
        rows = step(parents[going].tolist(), [text[-1] for text in written])
    text = finished.texts[0][1]
    return text[:-1] if text and text[-1] in ends else text
