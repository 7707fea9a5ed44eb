"""The texts that a model learns from, as rows of tokens: what step i reads follows from the seed and i."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.models._calibration import token_text

if TYPE_CHECKING:
    from haversack.run._source import Model

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

HELD_OUT = 20
"""One part of so many, the end of each text, is kept for the report."""


@dataclass(frozen=True)
class Texts:
    """Tokens to learn from, and some of the same texts that nothing is learned from; i32 [n] each."""

    learned: I32
    held_out: I32

    @property
    def crc32(self) -> str:
        """Tells whether these are the tokens of an earlier run."""
        return f"{zlib.crc32(self.learned.tobytes()):08x}{zlib.crc32(self.held_out.tobytes()):08x}"


def texts_for(model: Model, texts: Sequence[Path] | Texts, length: int) -> Texts:
    """`texts` in the tokens of `model`; see `read_texts`."""
    if isinstance(texts, Texts):
        return texts
    encode = model.tokenizer().encode
    return read_texts(
        lambda text: list(encode(text, special=False)), model.architecture.vocabulary, texts, length
    )


def read_texts(
    encode: Callable[[str], list[int]], vocabulary: int, paths: Sequence[Path], length: int
) -> Texts:
    """The tokens of UTF-8 files, one behind the other, their ends kept apart.

    Raises UserError for a file that is absent, empty, no text, not of this tokenizer or shorter than rows of
    `length` tokens need.
    """
    if not paths:
        raise UserError("there are no texts to learn from; give --data FILE.", field="data")
    fewest = HELD_OUT * (length + 2)
    found = [token_text(encode, vocabulary, "data", path, fewest).tokens for path in paths]
    return split(found)


def split(texts: Sequence[I32]) -> Texts:
    """Each text's end kept apart."""
    edges = [len(tokens) - len(tokens) // HELD_OUT for tokens in texts]
    learned = np.concatenate([tokens[:edge] for tokens, edge in zip(texts, edges, strict=True)])
    held_out = np.concatenate([tokens[edge:] for tokens, edge in zip(texts, edges, strict=True)])
    return Texts(learned.astype(np.int32), held_out.astype(np.int32))


class Rows:
    """Rows of `length` + 1 consecutive tokens, `rows` of them in a step. Every pass over the tokens cuts them
    at another offset and visits the rows in another order."""

    def __init__(self, tokens: I32, rows: int, length: int, seed: int) -> None:
        self.tokens, self.rows, self.length, self.seed = tokens, rows, length, seed
        self.pieces = (len(tokens) - length - 1) // length
        if self.pieces < 1:
            raise UserError(
                f"the texts give {len(tokens)} tokens to learn from, and rows of {length} need "
                f"{2 * length + 1}; give longer texts.",
                field="data",
                given=len(tokens),
                nearest=2 * length + 1,
            )
        self._order: tuple[int, I64] = (-1, np.empty(0, np.int64))

    def at(self, step: int) -> I64:
        """What `step` reads, i64 [rows, length + 1]."""
        places = range(step * self.rows, (step + 1) * self.rows)
        starts = [self._starts(place // self.pieces)[place % self.pieces] for place in places]
        return np.stack([self.tokens[start : start + self.length + 1] for start in starts]).astype(np.int64)

    def _starts(self, epoch: int) -> I64:
        if self._order[0] != epoch:
            drawn = np.random.default_rng([self.seed, epoch])
            shift = int(drawn.integers(0, len(self.tokens) - self.pieces * self.length))
            self._order = (epoch, shift + self.length * drawn.permutation(self.pieces))
        return self._order[1]


def held_out_rows(tokens: I32, rows: int, length: int) -> I64:
    """At most `rows` rows of `length` + 1 tokens, spread evenly over `tokens`."""
    count = min(rows, max(1, (len(tokens) - 1) // length))
    length = min(length, len(tokens) - 1)
    starts = np.linspace(0, len(tokens) - length - 1, count).astype(int)
    return np.stack([tokens[start : start + length + 1] for start in starts]).astype(np.int64)
