"""What a block of queries may see of the keys before it: exactly so many, each once, chosen by score.

Everything here is about one block of queries at the positions `first` to `end` - 1. The block's own keys are
always seen and count as chosen; what is returned lies before them, ascending.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def left_to_choose(low: int, first: int, end: int, sinks: int, local: int) -> range:
    """The keys of `low` .. `first` - 1 that are not always kept, as the first `sinks` of them and those
    among the last `local` before `end` are."""
    begin = min(low + sinks, max(first, low))
    return range(begin, max(min(end - local, first), begin))


def by_score(scores: F32, borders: I64, low: int, first: int, choice: range, most: int) -> I64:
    """The keys `low` .. `first` - 1 that are not in `choice`, and `most` of those in it, with the highest
    scores.

    Every key of chunk c, borders[c] .. borders[c + 1] - 1, has the score scores[c]; f32 [chunks], i64
    [chunks + 1]. Chunks are taken whole, best first (of equal ones the earlier), the last one from its
    beginning on as far as it fits. Returns i64, ascending, without repetition.
    """
    cuts = np.minimum(np.maximum(borders, choice.start), choice.stop)
    free = cuts[1:] - cuts[:-1]
    order = np.argsort(-scores, kind="stable")
    order = order[free[order] > 0]
    total = np.cumsum(free[order])
    whole = int(np.searchsorted(total, most, side="right"))
    taken = order[: whole + 1].copy()
    counts = free[taken]
    if whole < len(order):
        counts[-1] = most - (int(total[whole - 1]) if whole else 0)
    ascending = np.argsort(taken)
    begins = np.concatenate([[low], cuts[taken[ascending]], [choice.stop]])
    counts = np.concatenate([[choice.start - low], counts[ascending], [first - choice.stop]])
    return _runs(begins, counts)


def _runs(begins: I64, counts: I64) -> I64:
    """begins[i], begins[i] + 1, ... for counts[i] numbers, one run after the other."""
    before = np.cumsum(counts) - counts
    found: I64 = np.repeat(begins - before, counts) + np.arange(int(counts.sum()))
    return found


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
