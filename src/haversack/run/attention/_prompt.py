"""DHSA in the engine: the borders of a prompt, the chunks of a layer as it is read, and what each block
sees."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.core.pack import Pack
from haversack.kernels import (
    CacheLayer,
    Chosen,
    best_keys,
    left_to_choose,
    no_sums,
    rms_norm,
    rope,
    score_chunks,
    threads,
)
from haversack.models._architecture import Architecture, Attention, Block
from haversack.run._products import F32, multiply, normalize, normalize_heads
from haversack.run._sparsity import Reading
from haversack.run._step import Step
from haversack.run.attention._predictor import (
    ADVICE,
    FILE,
    PIECE,
    BoundaryPredictor,
    first_attention,
    judging_nbytes,
)
from haversack.run.attention._selection import by_columns_and_bands
from haversack.run.attention.dhsa import CHUNKS, DHSA, UNSURE, choose_borders
from haversack.run.layers.attention import fused_norm

if TYPE_CHECKING:
    from haversack.run._cache import Cache
    from haversack.run._source import Model
    from haversack.run._weights import Weights

I64 = npt.NDArray[np.int64]
VOTERS = 16
"""Last queries of a part that vote for columns and diagonals."""
WIDEST = 256
"""Most tokens that pass a layer at once."""


def predictor_of(method: DHSA, model: Model) -> BoundaryPredictor:
    """The predictor of `method.predictor`, else of the model's pack. Raises UserError when there is none or
    it was trained on another model."""
    source = model.source
    path = Path(method.predictor) if method.predictor else model.path / FILE
    if isinstance(source, Pack) and not method.predictor and FILE in source.record.files:
        source.read_file(FILE)  # against its checksums
    elif not path.is_file():
        where = f"{path} is not there" if method.predictor else f"{model.path} holds no boundary predictor"
        raise UserError(f"{where}; {ADVICE}.", field="predictor", given=str(path))
    found = BoundaryPredictor.open(path)
    found.require(source, model.architecture, path)
    return found


def keys_of(block: Block, hidden: F32, step: Step, weights: Weights, activations: str) -> F32:
    """The keys f32 [n, key heads * width] that `block` will write for its input `hidden` f32 [n, width]."""
    branch = next(one for one in block.branches if isinstance(one.layer, Attention))
    layer = branch.layer
    assert isinstance(layer, Attention)
    if step.reads is not None:
        weights = Reading(weights, step.reads)
    x = hidden if branch.norm is None else normalize(branch.norm, hidden, weights)
    flat = np.empty((len(hidden), layer.key.outputs), np.float32)
    multiply(x, (layer.key,), weights, (flat,), activations)
    keys = flat.reshape(len(flat), layer.key_value_heads, layer.head_width)
    norm = fused_norm(layer.key_norm, layer.head_width)
    if norm is not None:
        rms_norm(keys, weights[norm.weight], norm.eps, offset=norm.offset, out=keys)
    elif layer.key_norm is not None:
        normalize_heads(layer.key_norm, keys, weights)
    if layer.rope is not None:
        rope(keys, *step.tables(layer.rope), layer.rope.style)
    return flat


class Gaps:
    """Logits of the gaps of a text, as far as it has been read: `end` tokens."""

    def __init__(self, predictor: BoundaryPredictor) -> None:
        self.predictor = predictor
        self.end = 0
        self.logits: F32 = np.empty(0, np.float32)
        self._last: F32 = np.empty((0, predictor.channels), np.float32)

    def extend(self, keys: F32) -> None:
        """Read the keys f32 [n, channels] of the next tokens; gaps near the old end are judged again."""
        window = self.predictor.window
        known = max(self.end - window, 0)
        begin = self.end - len(self._last)
        joined = np.concatenate([self._last, keys])
        fresh = self.predictor.logits(joined)[known - begin :]
        self.logits = np.concatenate([self.logits[:known], fresh])
        self.end += len(keys)
        self._last = joined[-(2 * window - 1) :].copy()


@dataclass
class Tally:
    """What a run's prompts were seen to do. `pairs` of query and key were looked at in all layers, of
    `all`."""

    tokens: int = 0
    borders: int = 0
    pairs: int = 0
    all: int = 0
    border_s: float = 0.0
    choice_s: float = 0.0
    gathered_nbytes: int = 0
    note: str = ""

    def stats(self) -> dict[str, Any]:
        """As `run --json` prints it."""
        return {
            "tokens": self.tokens,
            "borders": self.borders,
            "kept": round(self.pairs / self.all, 4) if self.all else 1.0,
            "border_ms": round(1e3 * self.border_s, 3),
            "choice_ms": round(1e3 * self.choice_s, 3),
            "gathered_mib": round(self.gathered_nbytes / 2**20, 3),
            "note": self.note,
        }

    def words(self) -> str:
        """The same in a line."""
        if self.note:
            return f"attention: {self.note}"
        return (
            f"attention: {self.pairs / max(self.all, 1):.1%} of the pairs of {self.tokens:,} tokens; "
            f"{self.borders:,} borders in {1e3 * self.border_s:.0f} ms"
        )


class Reader:
    """Prepares the prompts of one engine. `first`: the first block with attention, whose keys the borders
    come from unless each block has its own."""

    def __init__(self, method: DHSA, model: Model) -> None:
        self.method = method
        self.first, _ = first_attention(model.architecture)
        blocks = [block.index for block in model.architecture.blocks if block.attention is not None]
        if method.border_block and method.border_block not in blocks:
            raise UserError(
                f"border_block={method.border_block} has no attention (allowed {self.first} to "
                f"{blocks[-1]}); use border_block={self.first}.",
                field="border_block",
                given=method.border_block,
                nearest=self.first,
            )
        self.source = method.border_block or self.first
        self.predictor = predictor_of(method, model) if method.predicts else None
        self.tally = Tally()

    def begin(
        self,
        block: Block,
        hidden: F32,
        parts: Sequence[tuple[slice, Step]],
        weights: Weights,
        cache: Cache,
        activations: str,
    ) -> None:
        """Find the borders of the text that the steps `parts` go on with, hidden f32 [n, width] being the
        input of `block`; what is decoded, and what fits the budget, is left to dense attention."""
        if block.index != self.first:
            own = block.index == self.source or not self.method.share_borders
            if self.predictor is not None and own and block.attention is not None:
                self._renew(block, hidden, parts, weights, cache, activations)
            return
        method, start = self.method, cache.length
        end = start + len(hidden)
        whole = max(cache.horizon, end)
        until = min(whole - method.tail, cache.horizon or whole)
        budget = method.budget_of(whole)
        decoded = len(hidden) < 2 or 0 < cache.horizon <= start
        if decoded or any(step.mask is not None or step.held is not None for _, step in parts):
            return
        if start == 0:
            self.tally = Tally(tokens=whole)
        if whole <= budget:
            self.tally.note = f"dense, for the prompt's {whole} tokens fit in the budget of {budget}"
        if start >= until or whole <= budget:
            return
        prompt = Prompt(method, np.array([0, end]), until, budget, self.tally)
        for _, step in parts:
            step.prompt = prompt
        self._renew(block, hidden, parts, weights, cache, activations)

    def _renew(
        self,
        block: Block,
        hidden: F32,
        parts: Sequence[tuple[slice, Step]],
        weights: Weights,
        cache: Cache,
        activations: str,
    ) -> None:
        """Give the prompt under way the borders that `block` sees."""
        prompt = parts[0][1].prompt
        if prompt is None:
            return
        begun, end = time.perf_counter(), cache.length + len(hidden)
        tail = end - min(prompt.until, end)
        prompt.borders = self._borders(block, hidden, parts, weights, cache, activations, tail)
        self.tally.border_s += time.perf_counter() - begun
        self.tally.borders = len(prompt.borders) - 1

    def _borders(
        self,
        block: Block,
        hidden: F32,
        parts: Sequence[tuple[slice, Step]],
        weights: Weights,
        cache: Cache,
        activations: str,
        tail: int,
    ) -> I64:
        method, start, end = self.method, cache.length, cache.length + len(hidden)
        if self.predictor is None or (block.index != self.source and method.share_borders):
            every = max(method.query_block // CHUNKS, 1) if method.mode == "dhsa" else method.key_block
            return np.unique(np.append(np.arange(0, end, every, dtype=np.int64), end))
        known = cache.gaps = cache.gaps or {}
        gaps = known.get(block.index)
        if gaps is None or gaps.predictor is not self.predictor or gaps.end > start:
            gaps = known[block.index] = Gaps(self.predictor)
        if gaps.end < start:  # tokens that were read without a thought of borders
            layer = cache.layers[block.index]
            assert layer is not None
            keys, _ = layer.floats(slice(gaps.end, start))
            gaps.extend(np.ascontiguousarray(keys.transpose(1, 0, 2)).reshape(start - gaps.end, -1))
        held: list[F32] = []
        for rows, step in parts:
            held.append(keys_of(block, hidden[rows], step, weights, activations))
            if step is parts[-1][1] or sum(map(len, held)) >= PIECE:
                gaps.extend(np.concatenate(held))
                held.clear()
        least = UNSURE if method.threshold is None else method.threshold
        edge = self.predictor.window
        return choose_borders(gaps.logits, method.query_block, least, method.apart, edge, tail)


class Prompt:
    """A prompt under way: its `borders`, and the choice of each block of queries before position `until`."""

    def __init__(self, method: DHSA, borders: I64, until: int, budget: int, tally: Tally) -> None:
        self.method, self.borders, self.until, self.budget = method, borders, until, budget
        self.tally = tally
        self._pool: Pool | None = None
        self._shared: dict[tuple[int, bool], tuple[I64, I64]] = {}

    def choose(self, query: F32, cache: CacheLayer, step: Step, layer: Attention) -> Chosen | None:
        """What the first queries of query f32 [n, heads, d] see of the cache; None: all of it. Queries behind
        those of the answer's blocks see all."""
        start, n = step.start, len(query)
        rows = min(self.until - start, n)
        low = 0 if layer.window is None else max(start - layer.window + 1, 0)
        every = _dense_pairs(start, n, layer.window)
        self.tally.all += every
        if rows <= 0 or start + n - low <= self.budget:
            self.tally.pairs += every
            return None
        begun = time.perf_counter()
        size = self.method.query_block
        bounds = np.array([*range(0, rows, size), rows], np.int64)
        key = (start, layer.window is not None)
        found = self._shared.get(key)
        if found is None:
            found = self._entries(query[:rows], cache, start, bounds, layer)
            if self.method.share_selection:
                self._shared[key] = found
        seen = step.visible(layer.window)
        first = None if seen.start is None else np.ascontiguousarray(seen.start[:rows])
        chosen = Chosen(start, bounds, *found, first)
        widest = int(np.diff(chosen.offsets).max()) + size
        self.tally.pairs += _pairs(chosen) + _dense_pairs(start + rows, n - rows, layer.window)
        gathered = 2 * threads() * layer.head_width * widest * cache.keys.itemsize
        self.tally.gathered_nbytes = max(self.tally.gathered_nbytes, gathered)
        self.tally.choice_s += time.perf_counter() - begun
        return chosen

    def _entries(
        self, query: F32, cache: CacheLayer, start: int, bounds: I64, layer: Attention
    ) -> tuple[I64, I64]:
        """What the blocks of query f32 [n, heads, d] see before themselves: offsets and entries of
        `Chosen`."""
        method = self.method
        if method.mode in ("dhsa", "dhsa_topk", "block"):
            scores = self._scores(query, cache, start, bounds)
            always = method.kept_sinks, method.kept_local
            found: tuple[I64, I64] = best_keys(
                scores, self.borders, start, bounds, self.budget, *always, layer.window
            )
            return found
        votes = None
        if method.mode == "dhsa_vs":
            votes = Votes.of(query, cache, start, layer, method.key_block)
        each = [self._block(start + a, start + b, layer, votes) for a, b in pairwise(bounds.tolist())]
        return np.cumsum([0, *map(len, each)]), np.concatenate(each)[None]

    def _block(self, first: int, end: int, layer: Attention, votes: Votes | None) -> I64:
        """What the block of queries at `first` to `end` - 1 sees before itself."""
        method = self.method
        low = 0 if layer.window is None else max(first - layer.window + 1, 0)
        if method.mode == "dense" or end - low <= self.budget:
            return np.arange(low, first, dtype=np.int64)
        local = self.budget - method.sinks if votes is None else method.kept_local
        choice = left_to_choose(low, first, end, method.kept_sinks, local)
        if votes is None:
            return np.concatenate([np.arange(low, choice.start), np.arange(choice.stop, first)])
        most = self.budget - (end - low) + len(choice)
        return by_columns_and_bands(
            votes.columns[low:first], votes.bands, method.key_block, low, end, choice, most
        )

    def _scores(self, query: F32, cache: CacheLayer, start: int, bounds: I64) -> F32:
        """The chunks' scores f32 [blocks, sets, chunks] for the blocks of query f32 [n, heads, d]."""
        pooling = self.method.pooling if self.method.mode == "dhsa" else "mean"
        if self._pool is None or self._pool.cache is not cache:
            sets = 1 if self.method.heads == "together" else len(cache.keys)
            sums = no_sums(sets, len(self.borders) - 1, cache.keys.shape[2], pooling)
            self._pool = Pool(cache, sums)
        pool, end = self._pool, start + int(bounds[-1])
        keys = np.ascontiguousarray(_keys(cache, pool.end, end))
        scores: F32 = score_chunks(query, keys, pool.end, start, bounds, self.borders, pool.sums, pooling)
        pool.end = end
        return scores


def _dense_pairs(start: int, n: int, window: int | None) -> int:
    """Pairs of query and key that `n` queries from position `start` on see densely."""
    growing = n if window is None else min(max(window - start, 0), n)
    return growing * start + growing * (growing + 1) // 2 + (n - growing) * (window or 0)


def _pairs(chosen: Chosen) -> int:
    """Pairs of query and key that the queries see under one key head."""
    queries = np.diff(chosen.bounds)
    total = int((queries * np.diff(chosen.offsets) + queries * (queries + 1) // 2).sum())
    if chosen.start is None:
        return total
    for block, (first, end) in enumerate(pairwise(chosen.bounds.tolist())):
        before = chosen.entries[0, chosen.offsets[block] : chosen.offsets[block + 1]]
        start, own = chosen.start[first:end], chosen.length + first
        total -= int(np.searchsorted(before, start).sum() + (start - own).clip(0).sum())
    return total


def _keys(cache: CacheLayer, begin: int, end: int) -> F32:
    """The keys of entries `begin` to `end` - 1, f32 [key heads, entries, d], not copied where they are
    f32."""
    keys = cache.keys[:, begin:end].astype(np.float32, copy=False)
    found: F32 = keys if cache.key_scales is None else keys * cache.key_scales[:, begin:end, None]
    return found


@dataclass
class Pool:
    """The chunks of one layer, added up as its keys are read: `sums` f32 [sets, chunks, d] of the keys before
    `end`."""

    cache: CacheLayer
    sums: F32
    end: int = 0


@dataclass(frozen=True, eq=False)
class Votes:
    """The attention of a part's last queries, averaged over heads: `columns` f32 [keys] by key, `bands` f32
    by how far back, `band` positions together."""

    columns: F32
    bands: F32

    @classmethod
    def of(cls, query: F32, cache: CacheLayer, start: int, layer: Attention, band: int) -> Votes:
        """Of query f32 [n, heads, d], the entries `start` and on of the cache."""
        voters = query[-VOTERS:]
        end = start + len(query)
        keys = _keys(cache, 0, end)
        positions = np.arange(end - len(voters), end)
        back = positions[:, None] - np.arange(end)[None]
        hidden = (back < 0) if layer.window is None else (back < 0) | (back >= layer.window)
        grouped = voters.reshape(len(voters), layer.key_value_heads, -1, layer.head_width)
        scores = np.einsum("nkgd,ked->nkge", grouped, keys) * np.float32(layer.scale)
        if layer.softcap is not None:
            scores = np.float32(layer.softcap) * np.tanh(scores / np.float32(layer.softcap))
        scores = np.where(hidden[:, None, None], np.float32(-np.inf), scores)
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares = (powers / powers.sum(axis=-1, keepdims=True)).mean(axis=(1, 2))
        seen = ~hidden
        bands = np.bincount(back[seen] // band, weights=shares[seen], minlength=end // band + 1)
        return cls(shares.sum(axis=0), bands.astype(np.float32))


def planned_nbytes(method: DHSA, architecture: Architecture, prompt: int, cache_type: str) -> int:
    """Bytes that reading a prompt of so many tokens takes beside dense attention's."""
    budget = method.budget_of(prompt)
    if prompt <= budget:
        return 0
    number = {"f32": 4, "f16": 2, "int8": 1}[cache_type]
    _, layer = first_attention(architecture)
    seen, size, width = budget + method.query_block, method.query_block, layer.head_width
    group = layer.heads // layer.key_value_heads
    sets = 1 if method.heads == "together" else layer.key_value_heads
    gathered = threads() * (2 * seen * (width * number + 4) + 8 * size * group * width)
    every = size // CHUNKS if method.mode == "dhsa" else method.key_block
    chunks = sets * (prompt // max(every, 1) + 1) * width * 4
    choices = (WIDEST // size + 4) * sets * seen * 8 + prompt * 48
    choices += WIDEST * (sets * (prompt // max(every, 1) + 1) // size + layer.key_value_heads * width) * 4
    if method.share_selection:
        choices += prompt // size * sets * seen * 16
    if method.mode == "dhsa_vs":
        choices += prompt * (4 * layer.key_value_heads * width + 12 * VOTERS * layer.heads + 16 * VOTERS)
    judged = judging_nbytes(layer.key_value_heads * width) if method.predicts else 0
    return int(gathered + chunks + choices + judged)
