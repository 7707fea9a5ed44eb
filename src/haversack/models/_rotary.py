"""Rotary tables of the tokens of a text: what the engine turns by, and what is learned through."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from haversack.kernels import rope_table
from haversack.models._rope import Rope

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]


def rotary_tables(rope: Rope, positions: I32, horizon: int) -> tuple[F32, F32]:
    """Cosine and sine f32 [n, width / 2].

    Where frequencies depend on the length of the text, a token's text is as long as its position says or as
    `horizon`, whichever is more: so a token's bits do not depend on which others share its step.
    """
    beyond = rope.changes_at()
    if beyond is None or max(int(positions.max()) + 1, horizon) <= beyond:
        cosine, sine = rope_table(positions, frequencies(rope), rope.attention_factor)
        return cosine, sine
    lengths = np.maximum(np.maximum(positions + 1, horizon), beyond)
    if rope.changes_once():
        lengths = np.minimum(lengths, beyond + 1)
    half = rope.width // 2
    cosine, sine = np.empty((len(positions), half), np.float32), np.empty((len(positions), half), np.float32)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        turning = rope.inverse_frequencies(int(length))
        cosine[rows], sine[rows] = rope_table(positions[rows], turning, rope.attention_factor)
    return cosine, sine


_FREQUENCIES: dict[Rope, F64] = {}


def frequencies(rope: Rope) -> F64:
    """The inverse frequencies of `rope` for texts within its context, computed once, as kernels take them."""
    found = _FREQUENCIES.get(rope)
    if found is None:
        _FREQUENCIES[rope] = found = rope.inverse_frequencies().astype(np.float64)
    return found
