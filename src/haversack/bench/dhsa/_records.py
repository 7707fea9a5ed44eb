"""Documents of records, and questions about them: generated, with a known answer.

A record is a key and 5 to 60 words that follow it; the questions stand behind all records, each a question
mark, a key and the words that its record begins with, with other words in between. Keys and words are tokens
of their own; words are drawn evenly, so nothing but the record tells what follows a key.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

PAD, ASK, STOP, START = 0, 1, 2, 3
KEYS, WORDS = 512, 256
FIRST_KEY, FIRST_WORD = 4, 4 + KEYS
VOCABULARY = FIRST_WORD + WORDS
SHORTEST, LONGEST = 5, 60


@dataclass(frozen=True)
class Document:
    """`tokens` i32 [length]; `answers` bool [length], the words that a question asks for, and of these
    `first`, each question's first; `starts`, where a record begins."""

    tokens: I32
    answers: Bools
    first: Bools
    starts: Bools


def document(
    rng: np.random.Generator,
    length: int,
    *,
    share: float = 0.125,
    longest: int = LONGEST,
    answer: int = 1,
    between: int = 24,
) -> Document:
    """One document of `length` tokens, of which questions take the last `share`; a token of its own begins
    it.

    Records have at most `longest` tokens, questions ask for `answer` words and stand at most `between` words
    apart.
    """
    tokens = np.full(length, PAD, np.int32)
    answers, first, starts = (np.zeros(length, bool) for _ in range(3))
    free = rng.permutation(KEYS)
    known: list[tuple[int, npt.NDArray[np.int64]]] = []
    tokens[0] = START
    at, end = 1, length - int(length * share)
    while len(known) < KEYS:
        size = int(rng.integers(max(SHORTEST, answer + 2), longest + 1))
        if at + size > end:
            break
        words = rng.integers(0, WORDS, size - 2) + FIRST_WORD
        key = int(free[len(known)]) + FIRST_KEY
        tokens[at : at + size] = [key, *words, STOP]
        starts[at] = True
        known.append((key, words[:answer]))
        at += size
    while True:
        fill = int(rng.integers(0, between + 1))
        if at + fill + 2 + answer > length:
            break
        tokens[at : at + fill] = rng.integers(0, WORDS, fill) + FIRST_WORD
        key, words = known[int(rng.integers(len(known)))]
        at += fill + 2
        tokens[at - 2 : at] = [ASK, key]
        tokens[at : at + answer] = words
        answers[at : at + answer] = True
        first[at] = True
        at += answer
    return Document(tokens, answers, first, starts)
