"""Models whose positions change once, when a text outgrows a length (LongRoPE): the text is then read again.

Keys that were turned by the frequencies of short texts do not go with queries turned by those of long ones.
So the first token beyond the length, and a text that is cut back behind it, make what the cache holds be read
anew, as the reference implementation does when it generates.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from haversack.run._cache import Cache
from haversack.run._step import Mask

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Read = Callable[[I32, I32, Mask | None, Cache], F32]
"""Takes tokens at positions into a cache; gives their hidden states f32 [n, width]."""


def read_across(read: Read, beyond: int, ids: I32, positions: I32, mask: Mask | None, cache: Cache) -> F32:
    """Hidden states f32 [n, width] of `ids` at `positions`, in front of them what `cache` holds.

    A token's text is as long as its position says or as `cache.horizon`, whichever is more. Tokens with a
    `mask` are of one text, as long as the furthest of them.
    """
    lengths = np.maximum(positions + 1, cache.horizon)
    if mask is not None:
        lengths[:] = lengths.max()
    ends = [*(np.flatnonzero(np.diff(lengths > beyond)) + 1), len(ids)]
    parts, start = [], 0
    for end in ends:
        part = slice(start, int(end))
        long = bool(lengths[start] > beyond)
        announced = cache.horizon
        if long:
            cache.horizon = max(announced, beyond + 1)
        try:
            if cache.length and cache.long is not long and cache.linear:
                _again(read, cache)
            cache.long = long
            parts.append(read(ids[part], positions[part], mask, cache))
        finally:
            cache.horizon = announced
        start = int(end)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _again(read: Read, cache: Cache) -> None:
    """Read what `cache` holds once more, under the horizon it has now."""
    assert cache.tokens is not None
    held, stands = cache.tokens[: cache.length].copy(), cache.positions[: cache.length].copy()
    if held.min() < 0:
        raise RuntimeError("the cache does not know the tokens it holds")
    cache.length = 0
    read(held, stands, None, cache)
