"""What a block of queries may see of the keys before it by columns and diagonals: so many, each once.

This is about one block of queries at the positions `first` to `end` - 1. The block's own keys are always
seen and count as chosen; what is returned lies before them, ascending.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def by_columns_and_bands(
    columns: F32, bands: F32, band: int, low: int, end: int, choice: range, most: int
) -> I64:
    """The keys that are not in `choice`, and up to `most` that are: half of them columns, the rest diagonals.

    `columns` f32 [first - low] scores each key, `bands` f32 those diagonals that are j x `band` to (j + 1) x
    `band` - 1 keys back. Diagonals are taken as wide as the block sees them. Returns i64, ascending.
    """
    first = low + len(columns)
    taken, others = np.ones(len(columns), bool), np.arange(choice.start - low, choice.stop - low)
    taken[others] = False
    half = min(most // 2, len(others))
    if half:
        taken[others[np.argpartition(-columns[others], half - 1)[:half]]] = True
    room = most - half
    for j in np.argsort(-bands, kind="stable"):
        begin = max(first - int(j + 1) * band + 1 - low, 0)
        stop = min(end - int(j) * band - low, len(taken))
        if begin >= stop:
            continue
        new = begin + np.flatnonzero(~taken[begin:stop])[:room]
        taken[new] = True
        room -= len(new)
        if room <= 0:
            break
    found: I64 = np.flatnonzero(taken) + low
    return found
