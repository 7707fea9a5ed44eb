"""Chunks of keys: their scores under blocks of queries, and the keys that the best of them give.

Chunk c holds the cache's entries borders[c] .. borders[c + 1] - 1 (`borders` i64 [chunks + 1], from 0 on),
block b the queries bounds[b] .. bounds[b + 1] - 1 (`bounds` i64 [blocks + 1], from 0 to n), which are the
entries `start` + bounds[b] and on. Key heads are averaged, which makes one set of chunk vectors, or each has
a set of its own. A block's bits are those of a call with it alone, and the same on every processor.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from haversack.core.errors import UserError, not_allowed
from haversack.kernels._arguments import check_array, refuse, refuse_arrays
from haversack.kernels._matrix import Array
from haversack.kernels._native import native

POOLINGS = ("sqrt", "mean", "max")


def score_chunks(
    q: Array, keys: Array, done: int, start: int, bounds: Array, borders: Array, sums: Array, pooling: str
) -> Array:
    """Scores f32[blocks, sets, chunks] of the chunks' parts before each block's end; -inf where there is
    none.

    q f32[n, heads, d]; keys f32[kv_heads, start + n - done, d], the entries from `done` on; sums f32[sets,
    chunks, d] holds those before (`no_sums` when done is 0) and afterwards all. A chunk's vector is the sum
    of its keys divided by the root of their number (`sqrt`) or by their number (`mean`), or their largest
    numbers (`max`); a block's is its queries' mean times the root of their number, or their largest numbers.
    Raises UserError for shapes and types that do not fit.
    """
    op, module = "score_chunks", native()
    if pooling not in POOLINGS:
        raise not_allowed("pooling", pooling, POOLINGS)
    out = np.empty((max(len(bounds) - 1, 0), len(sums), max(len(borders) - 1, 0)), np.float32)
    given = q, keys, done, start, bounds, borders, sums
    if module is not None and module.score_chunks(*given, POOLINGS.index(pooling), out):
        return out
    n, heads, width = check_array(op, "q", q, (None, None, None)).shape
    _check_places(op, start, n, bounds, borders)
    if not 0 <= done <= start:
        raise UserError(f"{op}: done must lie in 0..{start}, the first query's entry", field="done")
    kv_heads = check_array(op, "keys", keys, (None, start + n - done, width)).shape[0]
    if kv_heads == 0 or heads == 0 or heads % kv_heads or width == 0:
        refuse(op, "keys", "f32[kv_heads, fresh, d], their heads a divisor of q's", keys)
    if check_array(op, "sums", sums, (None, len(borders) - 1, width)).shape[0] not in (1, kv_heads):
        refuse(op, "sums", f"of 1 or {kv_heads} sets", sums)
    if module is not None:
        refuse_arrays(op)
    return score_chunks_twin(*given, pooling)


def no_sums(sets: int, chunks: int, width: int, pooling: str) -> Array:
    """What `score_chunks` begins with."""
    return np.full((sets, chunks, width), -np.inf if pooling == "max" else 0, np.float32)


def chunk_vectors(sums: Array, lengths: Array, pooling: str) -> Array:
    """f32[sets, chunks, d] of the sums (of `max`: the largest numbers) of so many keys i64[chunks]."""
    if pooling == "max":
        return sums
    counts = lengths.astype(np.float32)[:, None]
    return sums / (np.sqrt(counts) if pooling == "sqrt" else counts)


def score_chunks_twin(
    q: Array, keys: Array, done: int, start: int, bounds: Array, borders: Array, sums: Array, pooling: str
) -> Array:
    """The definition of `score_chunks`."""
    sets, chunks, width = sums.shape
    keys = keys.reshape(sets, -1, keys.shape[1], width).mean(axis=1)
    queries = q.reshape(len(q), sets, -1, width).mean(axis=2)
    add = np.maximum if pooling == "max" else np.add
    out = np.full((len(bounds) - 1, sets, chunks), -np.inf, np.float32)
    pooled = done
    for block, (begin, stop) in enumerate(pairwise(bounds.tolist())):
        end, rows = start + stop, queries[begin:stop]
        first = int(np.searchsorted(borders, pooled, side="right")) - 1
        seen = int(np.searchsorted(borders, end, side="left"))
        cuts = np.clip(borders[first:seen], pooled, None)
        fresh = add.reduceat(keys[:, pooled - done : end - done], cuts - pooled, axis=1)
        add(sums[:, first:seen], fresh, out=sums[:, first:seen])
        pooled = end
        query = rows.max(axis=0) if pooling == "max" else rows.mean(axis=0) * np.float32(np.sqrt(len(rows)))
        lengths = np.minimum(borders[1 : seen + 1], end) - borders[:seen]
        out[block, :, :seen] = np.einsum("sd,scd->sc", query, chunk_vectors(sums[:, :seen], lengths, pooling))
    return out


def best_keys(
    scores: Array,
    borders: Array,
    start: int,
    bounds: Array,
    budget: int,
    sinks: int = 0,
    local: int = 0,
    window: int | None = None,
) -> tuple[Array, Array]:
    """Offsets i64[blocks + 1] and entries i64[sets, total], as `Chosen` has them: what each block sees before
    itself, ascending, so that with the block's own entries it is `budget` keys, or all there are.

    The first `sinks` keys, and those among the last `local` before the block's end, are always taken; of the
    others those of the chunks with the highest scores f32[blocks, sets, chunks], of equal ones the earlier
    chunk, the last one from its beginning on as far as it fits. With a `window`, keys begin where that of
    the block's first query does. Raises UserError for what does not fit, and for a budget that does not hold
    what is always taken.
    """
    op, module = "best_keys", native()
    for field, given, least in (("sinks", sinks, 0), ("local", local, 0), ("window", window, 1)):
        if given is not None and given < least:
            raise UserError(f"{op}: {field}={given} must be at least {least}", field=field, given=given)
    check_array(op, "bounds", bounds, (None,), ("int64",))
    ends = (start + bounds).tolist()
    lows = [0 if window is None else max(first - window + 1, 0) for first in ends[:-1]]
    offsets = [0]
    for low, (first, end) in zip(lows, pairwise(ends), strict=True):
        offsets.append(offsets[-1] + max(min(first - low, budget - (end - first)), 0))
    places = start, bounds, window or 0, sinks, local, np.array(offsets, np.int64)
    if module is not None:
        out = np.empty((scores.shape[1] if np.ndim(scores) == 3 else 0, offsets[-1]), np.int64)
        if module.best_keys(scores, borders, *places, out):
            return places[-1], out
    _check_places(op, start, int(bounds[-1]) if len(bounds) else 0, bounds, borders)
    check_array(op, "scores", scores, (len(bounds) - 1, None, len(borders) - 1))
    kept = [
        end - low - len(left_to_choose(low, first, end, sinks, local))
        for low, (first, end) in zip(lows, pairwise(ends), strict=True)
    ]
    if budget < max(kept):
        raise UserError(
            f"{op}: budget={budget} does not hold the {max(kept)} keys that are always taken",
            field="budget",
            given=budget,
            nearest=max(kept),
        )
    if module is not None:
        refuse_arrays(op)
    return best_keys_twin(scores, borders, start, bounds, budget, sinks, local, window)


def best_keys_twin(
    scores: Array,
    borders: Array,
    start: int,
    bounds: Array,
    budget: int,
    sinks: int = 0,
    local: int = 0,
    window: int | None = None,
) -> tuple[Array, Array]:
    """The definition of `best_keys`."""
    found = []
    for block, (begin, stop) in enumerate(pairwise(bounds.tolist())):
        first, end = start + begin, start + stop
        low = 0 if window is None else max(first - window + 1, 0)
        choice = left_to_choose(low, first, end, sinks, local)
        most = min(budget - (end - low) + len(choice), len(choice))
        found.append(np.stack([by_score(each, borders, low, first, choice, most) for each in scores[block]]))
    offsets = np.cumsum([0, *(each.shape[1] for each in found)])
    return offsets, np.concatenate(found, axis=1)


def left_to_choose(low: int, first: int, end: int, sinks: int, local: int) -> range:
    """The keys of `low` .. `first` - 1 that are not always kept, as the first `sinks` of them and those
    among the last `local` before `end` are."""
    begin = min(low + sinks, first)
    return range(begin, max(min(end - local, first), begin))


def by_score(scores: Array, borders: Array, low: int, first: int, choice: range, most: int) -> Array:
    """The keys `low` .. `first` - 1 that are not in `choice`, and `most` of those in it: chunks by their
    scores f32[chunks], best first. i64, ascending."""
    cuts = np.clip(borders, choice.start, choice.stop)
    free = cuts[1:] - cuts[:-1]
    order = np.argsort(-scores, kind="stable")
    before = np.cumsum(free[order]) - free[order]
    taken = np.zeros_like(free)
    taken[order] = np.clip(most - before, 0, free[order])
    begins = np.concatenate([[low], cuts[:-1], [choice.stop]])
    counts = np.concatenate([[choice.start - low], taken, [first - choice.stop]])
    found: Array = np.repeat(begins - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))
    return found


def _check_places(op: str, start: int, n: int, bounds: Array, borders: Array) -> None:
    if start < 0:
        raise UserError(f"{op}: start={start} must be at least 0", field="start", given=start, nearest=0)
    for name, ends in (("bounds", bounds), ("borders", borders)):
        check_array(op, name, ends, (None,), ("int64",))
        if len(ends) < 2 or ends[0] != 0 or bool((np.diff(ends) < 1).any()):
            raise UserError(f"{op}: {name} must ascend from 0", field=name)
    if bounds[-1] != n:
        raise UserError(f"{op}: bounds must end at {n}, the number of queries", field="bounds")
    if borders[-1] < start + n:
        raise UserError(f"{op}: borders must reach {start + n}, the last query's end", field="borders")
