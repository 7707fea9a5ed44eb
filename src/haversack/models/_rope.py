"""Rotary positions: how fast each pair of a head's numbers turns, for every scaling that stretches a context.

Su et al., "RoFormer" (2021); the scalings are those of the hub's configs: `default`, `linear` (positions
divided), `dynamic` (NTK: a larger base for longer texts), `llama3` (low frequencies divided, high ones kept),
`yarn` (Peng et al., 2023: a ramp between divided and kept, and a factor on cosine and sine), `longrope` (Ding
et al., 2024: a searched divisor for each pair, one set for short texts and one for long).

Frequencies are computed in f32, step by step as the models were trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    F32 = NDArray[np.float32]

SCALINGS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class Rope:
    """Rotary positions of the first `width` numbers of each head.

    `theta` is the base; `scaling` one of SCALINGS with its `factor`; `original_context` the context the model
    was first trained for. `low` and `high` are llama3's frequency factors or yarn's slow and fast turns;
    `truncate` rounds yarn's ramp to whole dimensions; `attention_factor` multiplies cosine and sine. `style`:
    which numbers form a pair, `half` (i and i + width / 2) or `interleaved` (2 i and 2 i + 1). `short` and
    `long` are longrope's divisors, one for each pair.
    """

    width: int
    theta: float
    scaling: str = "default"
    factor: float = 1.0
    original_context: int = 0
    low: float = 1.0
    high: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    style: str = "half"
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()

    def changes_at(self) -> int | None:
        """Beyond this length the frequencies depend on the length of the text; None when they never do."""
        return self.original_context if self.scaling in ("dynamic", "longrope") else None

    def changes_once(self) -> bool:
        """True when all lengths beyond `changes_at` share their frequencies."""
        return self.scaling == "longrope"

    def inverse_frequencies(self, length: int = 0) -> F32:
        """Radians per position of each pair, f32 [width / 2]; `length` of the text matters to `dynamic` and
        `longrope` only.
        """
        return _FREQUENCIES[self.scaling](self, length)


def _powers(width: int, theta: float) -> F32:
    """theta^(2 i / width), f32 [width / 2]."""
    import numpy as np

    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    powers: F32 = np.power(np.float32(theta), exponents, dtype=np.float32)
    return powers


def _default(rope: Rope, length: int) -> F32:
    import numpy as np

    return np.float32(1) / _powers(rope.width, rope.theta)


def _linear(rope: Rope, length: int) -> F32:
    import numpy as np

    return _default(rope, length) / np.float32(rope.factor)


def _dynamic(rope: Rope, length: int) -> F32:
    import numpy as np

    length = max(length, rope.original_context)
    stretch = rope.factor * length / rope.original_context - (rope.factor - 1)
    theta = rope.theta * stretch ** (rope.width / (rope.width - 2))
    return np.float32(1) / _powers(rope.width, theta)


def _llama3(rope: Rope, length: int) -> F32:
    import numpy as np

    kept = _default(rope, length)
    divided = kept / np.float32(rope.factor)
    wavelength = np.float32(2 * math.pi) / kept
    smooth = (np.float32(rope.original_context) / wavelength - np.float32(rope.low)) / np.float32(
        rope.high - rope.low
    )
    blended = (np.float32(1) - smooth) * divided + smooth * kept
    slow = wavelength > np.float32(rope.original_context / rope.low)
    fast = wavelength < np.float32(rope.original_context / rope.high)
    frequencies: F32 = np.where(slow, divided, np.where(fast, kept, blended)).astype(np.float32)
    return frequencies


def _yarn(rope: Rope, length: int) -> F32:
    import numpy as np

    def dimension(turns: float) -> float:
        """The pair that turns `turns` times within the original context."""
        return (
            rope.width * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
        )

    low, high = dimension(rope.high), dimension(rope.low)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.width - 1)
    if low == high:
        high += 0.001
    ramp = np.clip(
        (np.arange(rope.width // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1
    )
    powers = _powers(rope.width, rope.theta)
    kept = np.float32(1) / powers
    divided = np.float32(1) / (np.float32(rope.factor) * powers)
    frequencies: F32 = (divided * ramp + kept * (np.float32(1) - ramp)).astype(np.float32)
    return frequencies


def _longrope(rope: Rope, length: int) -> F32:
    import numpy as np

    divisors = np.asarray(rope.long if length > rope.original_context else rope.short, np.float32)
    frequencies: F32 = np.float32(1) / (divisors * _powers(rope.width, rope.theta))
    return frequencies


_FREQUENCIES: dict[str, Callable[[Rope, int], F32]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def longrope_attention_factor(factor: float, original_context: int) -> float:
    """The factor on cosine and sine when the config gives none: sqrt(1 + ln(factor) / ln(context))."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_context))


def yarn_attention_factor(factor: float, mscale: float | None, mscale_all: float | None) -> float:
    """The factor on cosine and sine when the config gives none: 0.1 ln(factor) + 1, or a ratio of two
    such.
    """

    def term(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    return term(mscale) / term(mscale_all) if mscale and mscale_all else term(1.0)
