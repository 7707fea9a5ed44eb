"""What a block of queries may see of the keys before it: exactly so many, each once, chosen by score.

Everything here is about one block of queries at the positions `first` to `end` - 1. The block's own keys are
always seen and count as chosen; what is returned lies before them, ascending.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def always_kept(low: int, first: int, end: int, sinks: int, local: int) -> Bools:
    """Which of the keys `low` .. `first` - 1 are kept whatever they score: the first `sinks` of them and
    those among the last `local` before `end`. bool [first - low]."""
    kept = np.zeros(max(first - low, 0), bool)
    kept[:sinks] = True
    kept[max(end - local - low, 0) :] = True
    return kept


def by_score(scores: F32, borders: I64, low: int, kept: Bools, most: int) -> I64:
    """The keys that are `kept` and, of the others, `most` with the highest scores.

    Every key of chunk c, borders[c] .. borders[c + 1] - 1, has the score scores[c]; f32 [chunks], i64
    [chunks + 1]. Chunks are taken whole, best first (of equal ones the earlier), the last one from its
    beginning on as far as it fits. Returns i64, ascending, without repetition.
    """
    stop = low + len(kept)
    begins, ends = borders[:-1].clip(low, stop), borders[1:].clip(low, stop)
    before = np.concatenate([[0], np.cumsum(~kept)])  # keys not kept, before each key
    free = before[ends - low] - before[begins - low]
    order = np.argsort(-scores, kind="stable")
    order = order[free[order] > 0]
    total = np.cumsum(free[order])
    whole = int(np.searchsorted(total, most, side="right"))
    change = np.zeros(len(kept) + 1, np.int64)
    change[begins[order[:whole]] - low] += 1  # no two chunks begin, or end, in one place
    change[ends[order[:whole]] - low] -= 1
    taken = kept | (np.cumsum(change[:-1]) > 0)
    left = most - (int(total[whole - 1]) if whole else 0)
    if left > 0 and whole < len(order):
        begin, end = begins[order[whole]] - low, ends[order[whole]] - low
        new = np.flatnonzero(~kept[begin:end])[:left]
        taken[begin + new] = True
    found: I64 = np.flatnonzero(taken) + low
    return found


def by_columns_and_bands(
    columns: F32, bands: F32, band: int, low: int, end: int, kept: Bools, most: int
) -> I64:
    """The keys that are `kept` and up to `most` others: half of them columns, the rest diagonals.

    `columns` f32 [first - low] scores each key, `bands` f32 those diagonals that are j x `band` to (j + 1) x
    `band` - 1 keys back. Diagonals are taken as wide as the block sees them. Returns i64, ascending.
    """
    taken, first = kept.copy(), low + len(kept)
    others = np.flatnonzero(~kept)
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
