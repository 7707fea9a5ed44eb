"""What query routers see of a query: its words and pairs of words, and its shape.

Words and pairs are hashed (CRC-32), weighed by 1 + log of their count times the inverse document frequency of
the training set, and the whole has length 1; words of fewer than two training queries are left out. The shape
is a few standardised numbers: lengths, numerals, operators, words that go with calculation.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
MOST_TEXT = 20_000
"""Characters of a query that are looked at."""
_WORD = re.compile(r"\w+(?:['’]\w+)?|[^\w\s]")
_NUMERAL = re.compile(r"\d+(?:[.,]\d+)*")
_COUNTED = (
    r"%|percent",
    r"\$|€|dollar|cost|price|pay",
    r"\bhalf\b|\bthird\b|\bquarter\b|\d/\d",
    r"\btwice\b|\bdouble|\btriple|\btimes\b",
    r"\bthan\b",
    r"\bif\b",
    r"\beach\b|\bevery\b|\bper\b",
    r"\bremain|\bleft\b|\brest\b",
    r"\bmore\b|\bless\b|\bfewer\b",
    r"[-+*/=<>^]",
    r"\bnot\b|\bexcept\b|n't\b",
    r"[\n:;]",
)
_PATTERNS = tuple(re.compile(pattern, re.IGNORECASE) for pattern in _COUNTED)
SHAPE = 9 + len(_COUNTED)


def shape_of(text: str) -> F64:
    """The shape of a query, f64 [SHAPE]."""
    text = text[:MOST_TEXT]
    words = text.split()
    numerals = _NUMERAL.findall(text)
    sizes = [float(one.replace(",", "")) for one in numerals if one.replace(",", "").count(".") <= 1]
    found = [
        float(len(text)),
        float(len(words)),
        np.log1p(len(text)),
        float(len(re.findall(r"[.?!](?:\s|$)", text))),
        float(len(numerals)),
        float(len(set(numerals))),
        np.log1p(min(max(sizes, default=0.0), 1e12)),
        float(sum("." in one for one in numerals)),
        sum(map(len, words)) / max(len(words), 1),
    ]
    return np.array([*found, *(float(len(pattern.findall(text))) for pattern in _PATTERNS)])


def terms_of(text: str) -> Counter[int]:
    """How often a query has each word and pair of words, by their hash."""
    words = [word.lower() for word in _WORD.findall(text[:MOST_TEXT])]
    pairs = [f"{one} {other}" for one, other in itertools.pairwise(words)]
    return Counter(zlib.crc32(term.encode()) & 0x7FFFFFFF for term in [*words, *pairs])


@dataclass(frozen=True)
class Features:
    """`kept` i32 [m]: hashes of the terms, ascending; `idf` f32 [m]; `mean`, `spread` f32 [SHAPE]."""

    kept: I32
    idf: F32
    mean: F32
    spread: F32

    @classmethod
    def of(cls, texts: Sequence[str], terms: Sequence[Counter[int]], shapes: F64) -> Features:
        """Learned of a training set."""
        counts: Counter[int] = Counter()
        for found in terms:
            counts.update(found.keys())
        kept = np.array(sorted(term for term, count in counts.items() if count > 1), np.int32)
        often = np.array([counts[int(term)] for term in kept], np.float64)
        idf = np.log((1 + len(texts)) / (1 + often)) + 1
        spread = shapes.std(0)
        spread[spread < 1e-9] = 1.0
        return cls(kept, idf.astype(np.float32), shapes.mean(0).astype(np.float32), spread.astype(np.float32))

    def sparse(self, terms: Counter[int]) -> tuple[NDArray[np.int64], F64]:
        """(places among `kept`, values of length 1) of one query."""
        if not len(self.kept) or not terms:
            return np.zeros(0, np.int64), np.zeros(0)
        hashes = np.fromiter(terms.keys(), np.int64, len(terms))
        values = 1 + np.log(np.fromiter(terms.values(), np.float64, len(terms)))
        at = np.minimum(np.searchsorted(self.kept, hashes), len(self.kept) - 1)
        known = self.kept[at] == hashes
        at, values = at[known], values[known] * self.idf[at[known]]
        order = np.argsort(at)
        length = float(np.linalg.norm(values))
        return at[order], values[order] / (length or 1.0)

    def shape(self, shapes: F64) -> F64:
        """Shapes [..., SHAPE] standardised, far ones cut at 4 standard deviations."""
        standard: F64 = np.clip((shapes - self.mean) / self.spread, -4, 4)
        return standard

    def matrix(self, terms: Sequence[Counter[int]]) -> Any:
        """The sparse matrix [n, m] of queries (scipy)."""
        from scipy.sparse import csr_matrix

        rows = [self.sparse(found) for found in terms]
        ends = np.cumsum([0, *(len(at) for at, _ in rows)])
        at = np.concatenate([at for at, _ in rows]) if rows else np.zeros(0, np.int64)
        values = np.concatenate([values for _, values in rows]) if rows else np.zeros(0)
        return csr_matrix((values, at, ends), shape=(len(rows), len(self.kept)))

    def tensors(self) -> dict[str, NDArray[Any]]:
        """As a router's file keeps them."""
        return {"kept": self.kept, "idf": self.idf, "mean": self.mean, "spread": self.spread}
