"""Front ends of CURA: what turns rows of a table, texts, small pictures and windows of a series into its
inputs.

Each says how many numbers it stores (`stored`): means and scales that it measured. What follows from a seed
or from a formula is not stored, and is listed apart (`implied`)."""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError

F64 = NDArray[np.float64]
ONE_HOT_MOST, HASHED, BUCKETS, PROJECTED, PIXELS = 16, 8, 1024, 32, 64
RATES = tuple(float(rate) for rate in np.geomspace(0.02, 0.7, 6))
_WORD = re.compile(r"[^\W_]+", re.UNICODE)


def hashed(text: str) -> tuple[int, int]:
    """A text's bucket and sign, the same on every machine."""
    code = zlib.crc32(text.encode())
    return code >> 1, 1 if code & 1 else -1


@dataclass
class Table:
    """Columns of numbers, standardised, and of words: one-hot up to 16 values, else hashed to 8."""

    kinds: list[dict[str, Any]]
    hashing: bool = False

    @classmethod
    def of(cls, rows: Sequence[Sequence[Any]], names: Sequence[str], hashing: bool = False) -> Table:
        kinds = []
        for at, name in enumerate(names):
            column = [row[at] for row in rows]
            numbers = [_number(cell) for cell in column]
            if all(number is not None for number in numbers):
                values = np.asarray(numbers, np.float64)
                if not np.isfinite(values).all():
                    raise UserError(
                        f"the column {name} holds a number that is missing or not finite in row "
                        f"{int(np.argmax(~np.isfinite(values))) + 1}; fill or drop it.",
                        field=name,
                    )
                scale = float(values.std())
                kinds.append(
                    {"name": name, "mean": float(values.mean()), "scale": scale if scale > 0 else 1.0}
                )
                continue
            words = sorted({str(cell) for cell in column})
            if len(words) <= ONE_HOT_MOST and not hashing:
                kinds.append({"name": name, "words": words})
            else:
                kinds.append({"name": name, "words": None})
        return cls(kinds, hashing)

    def transform(self, rows: Sequence[Sequence[Any]]) -> F64:
        """[rows, inputs]. Raises UserError for a word that was never seen, and for cells that are no
        numbers."""
        out = np.zeros((len(rows), self.inputs))
        for number, row in enumerate(rows):
            at = 0
            for kind, cell in zip(self.kinds, row, strict=True):
                if "mean" in kind:
                    value = _number(cell)
                    if value is None or not math.isfinite(value):
                        raise UserError(
                            f"row {number + 1}: {str(cell)[:40]!r} in the column {kind['name']} is no "
                            "number.",
                            field=kind["name"],
                            given=str(cell)[:40],
                        )
                    out[number, at] = (value - kind["mean"]) / kind["scale"]
                    at += 1
                elif kind["words"] is None:
                    bucket, sign = hashed(str(cell))
                    out[number, at + bucket % HASHED] = sign
                    at += HASHED
                else:
                    if str(cell) not in kind["words"]:
                        shown = ", ".join(kind["words"])
                        raise UserError(
                            f"row {number + 1}: {str(cell)[:40]!r} in the column {kind['name']} was never "
                            "seen "
                            f"(known: {shown}); train with --hashing to allow others.",
                            field=kind["name"],
                            given=str(cell)[:40],
                        )
                    out[number, at + kind["words"].index(str(cell))] = 1.0
                    at += len(kind["words"])
        return out

    @property
    def inputs(self) -> int:
        """Inputs of the network."""
        return sum(
            1 if "mean" in kind else HASHED if kind["words"] is None else len(kind["words"])
            for kind in self.kinds
        )

    @property
    def stored(self) -> int:
        """Numbers that are kept: a mean and a scale a column."""
        return sum(2 for kind in self.kinds if "mean" in kind)


def text_features(texts: Sequence[str], weights: F64 | None = None) -> tuple[F64, F64]:
    """([n, 32] features, [1024] weights): words and pairs of words in 1,024 signed buckets, weighed by their
    rarity (measured here unless given), thrown onto 32 directions that follow from a seed."""
    counts = np.zeros((len(texts), BUCKETS))
    for row, text in enumerate(texts):
        words = [word.lower() for word in _WORD.findall(text)]
        for term in [*words, *(f"{one} {other}" for one, other in itertools.pairwise(words))]:
            bucket, sign = hashed(term)
            counts[row, bucket % BUCKETS] += sign
    if weights is None:
        weights = np.log((1 + len(texts)) / (1 + (counts != 0).sum(0))) + 1
    scaled = counts * weights
    scaled /= np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
    directions = np.random.default_rng(0).standard_normal((BUCKETS, PROJECTED))
    return scaled @ directions, weights


def picture_features(pictures: F64) -> F64:
    """[n, <= 64] low cosine components of pictures [n, height, width]: of the whole one up to 8 x 8 pixels,
    else of a grid of 4 x 4 blocks, 4 of each."""
    n, height, width = pictures.shape
    if height <= 8 and width <= 8:
        return np.einsum("ki,nij,lj->nkl", cosines(height), pictures, cosines(width)).reshape(n, -1)
    rows, columns = height // 4, width // 4
    blocks = pictures[:, : 4 * rows, : 4 * columns].reshape(n, 4, rows, 4, columns)
    low = np.einsum("ki,naibj,lj->nabkl", cosines(rows)[:2], blocks, cosines(columns)[:2])
    return low.reshape(n, -1)


def cosines(size: int) -> F64:
    """The orthonormal cosine transform [size, size]."""
    at = np.arange(size)
    out = np.cos(np.pi * (2 * at[None, :] + 1) * at[:, None] / (2 * size)) * math.sqrt(2 / size)
    out[0] /= math.sqrt(2)
    return out


def window_features(windows: F64, lags: Sequence[int]) -> tuple[F64, F64]:
    """([n, 6 + lags + 1] features, [n] means) of windows [n, seq]: the ends of six RC filters of log-spaced
    time constants, the values `lags` back, the last one; the window's mean taken away."""
    mean = windows.mean(1)
    inner = windows - mean[:, None]
    seq = windows.shape[1]
    back = np.arange(seq)[::-1]
    filters = np.stack([rate * (1 - rate) ** back for rate in RATES], axis=1)
    return np.concatenate([inner @ filters, inner[:, [seq - lag for lag in lags]]], axis=1), mean


def _number(cell: Any) -> float | None:
    if isinstance(cell, int | float | np.number) and not isinstance(cell, bool):
        return float(cell)
    text = str(cell).strip()
    if text == "":
        return math.nan
    try:
        return float(text)
    except ValueError:
        return None
