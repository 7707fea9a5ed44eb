"""Many texts in one step: their caches in one allocation, one pass over the weights for all their tokens.

    together = Together(engine, slots=8)
    logits = together.step([Part(slot=0, tokens=[5]), Part(slot=3, tokens=[7, 9])])

A text's bits are those of `Engine.step` on its cache alone, whoever shares its steps: products and norms are
row-invariant, and attention, rotation and writes go by runs of rows of one text (kernels/pooled.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.kernels import CacheLayer, PoolLayer, pool_attention, pool_write
from haversack.models._architecture import Architecture, Attention
from haversack.models._rope import Rope
from haversack.models._rotary import rotary_tables
from haversack.run._cache import Cache
from haversack.run._engine import Engine
from haversack.run._forward import ROWS, Forward
from haversack.run._step import Step, checked_positions
from haversack.run.attention.dense import Dense
from haversack.run.attention.sliding import Sliding

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


class CachePool:
    """`slots` caches of `capacity` entries in one allocation a block; `caches[slot]` is a `Cache` like any
    other. Memory is touched when it is written and stays for the next text of the slot."""

    def __init__(self, architecture: Architecture, slots: int, capacity: int, kind: str = "f32") -> None:
        if slots < 1 or capacity < 1:
            raise UserError(
                f"{slots} caches of {capacity} tokens hold nothing.",
                field="contexts",
                given=slots,
                nearest=max(slots, 1),
            )
        self.capacity, self.kind = capacity, kind
        self.layers: list[PoolLayer | None] = [
            None
            if block.attention is None
            else PoolLayer.empty(
                slots, block.attention.key_value_heads, capacity, block.attention.head_width, kind
            )
            for block in architecture.blocks
        ]
        self.caches = [
            Cache(
                architecture,
                capacity,
                kind,
                [None if layer is None else layer.slot(slot) for layer in self.layers],
            )
            for slot in range(slots)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and scales of all slots at full capacity."""
        return sum(layer.nbytes for layer in self.layers if layer is not None)


@dataclass(frozen=True, slots=True)
class Part:
    """The next tokens of the text in `slot`. `want`: `last` gives its logits f32 [vocabulary], `all` those of
    every token f32 [n, vocabulary], `hidden` the normalized hidden states f32 [n, width], `none` nothing."""

    slot: int
    tokens: Sequence[int] | I32
    want: str = "last"


class PooledStep:
    """What a step of several texts knows beside its tokens; the counterpart of `Step`."""

    def __init__(self, parts: Sequence[Part], caches: Sequence[Cache]) -> None:
        runs = np.empty((len(parts), 4), np.int64)
        row = 0
        for index, part in enumerate(parts):
            count = len(part.tokens)
            runs[index] = row, count, part.slot, caches[part.slot].length
            row += count
        self.rows = row
        self.runs: I64 = runs
        if row == len(parts):
            self.positions: I32 = runs[:, 3].astype(np.int32)
        else:
            starts = np.repeat(runs[:, 3] - runs[:, 0], runs[:, 1])
            self.positions = (starts + np.arange(row)).astype(np.int32)
        until = np.repeat([caches[part.slot].sparse_from for part in parts], runs[:, 1])
        self.reads = self.positions < until if until.any() else None
        self.horizons = [caches[part.slot].horizon for part in parts]
        self._tables: dict[int, tuple[F32, F32]] = {}
        self._starts: dict[int, I64 | None] = {}
        self._steps: list[tuple[slice, int, Step]] = []

    def tables(self, rope: Rope) -> tuple[F32, F32]:
        """Cosine and sine f32 [rows, rope.width / 2]."""
        found = self._tables.get(id(rope))
        if found is None:
            if rope.changes_at() is None:
                found = rotary_tables(rope, self.positions, 0)
            else:  # a token's frequencies depend on its own text's length
                made = [
                    rotary_tables(rope, self.positions[row : row + count], horizon)
                    for (row, count, _, _), horizon in zip(self.runs.tolist(), self.horizons, strict=True)
                ]
                found = np.concatenate([one for one, _ in made]), np.concatenate([two for _, two in made])
            self._tables[id(rope)] = found
        return found

    def first_seen(self, window: int | None) -> I64 | None:
        """The first entry each row sees under a window, i64 [rows]; None when all see everything."""
        if window is None:
            return None
        if window not in self._starts:
            oldest = self.positions.astype(np.int64) - (window - 1)
            self._starts[window] = oldest.clip(0) if bool((oldest > 0).any()) else None
        return self._starts[window]

    def write(
        self, q: F32, k: F32, v: F32, cos: F32 | None, sin: F32 | None, cache: PoolLayer, **norms: Any
    ) -> None:
        """See `Step.write`."""
        pool_write(q, k, v, cos, sin, cache, self.runs, **norms)

    def single(self) -> list[tuple[slice, int, Step]]:
        """The texts one by one: rows, slot, and the step of that text alone."""
        if not self._steps:
            for (row, count, slot, entry), horizon in zip(self.runs.tolist(), self.horizons, strict=True):
                rows = slice(row, row + count)
                self._steps.append((rows, slot, Step(self.positions[rows], entry, None, None, horizon)))
        return self._steps


class PooledAttention:
    """An attention method over the caches of several texts: dense and sliding in one call, any other text by
    text."""

    def __init__(self, method: Any) -> None:
        self.method = method
        self._one_call = type(method) is Dense or (type(method) is Sliding and method.sink == 0)
        self.visible = self._first_seen if self._one_call else None

    def _first_seen(self, step: PooledStep, layer: Attention) -> I64 | None:
        """The first entry each row sees, i64 [rows]; None: all. A model's own, narrower window holds."""
        windows = [w for w in (layer.window, getattr(self.method, "window", None)) if w is not None]
        return step.first_seen(min(windows, default=None))

    def attend(self, query: F32, cache: CacheLayer, step: Step, layer: Attention) -> F32:
        """query f32 [n, heads, head width] over the slots of the step -> f32 [n, heads, head width]."""
        pool: Any = cache
        pooled: Any = step
        if self._one_call:
            start = self._first_seen(pooled, layer)
            out: F32 = pool_attention(query, pool, pooled.runs, layer.scale, layer.softcap, start=start)
            return out
        out = np.empty(query.shape, np.float32)
        for rows, slot, one in pooled.single():
            out[rows] = self.method.attend(query[rows], pool.slot(slot), one, layer)
        return out


class Together:
    """Steps several texts at once, each in a slot of `pool`; `rows` tokens at most in one step."""

    rows = ROWS

    def __init__(self, engine: Engine, slots: int, capacity: int | None = None) -> None:
        if engine.reader is not None:
            name = engine.slots.attention.name
            raise UserError(
                f"attention {name} reads one prompt at a time and cannot serve several; use dense.",
                field="attention",
                given=name,
                nearest="dense",
            )
        self.engine = engine
        self.pool = CachePool(
            engine.architecture, slots, capacity or engine.context_length, engine.cache_type
        )
        self.caches = self.pool.caches
        self._forward = Forward(
            engine.architecture,
            activations=engine.activations,
            attention=PooledAttention(engine.slots.attention),
        )
        self._forward.scratch = engine.forward.scratch
        self._forward.experts = engine.forward.experts

    def step(self, parts: Sequence[Part]) -> list[F32 | None]:
        """Read the next tokens of each part's text; returns what each part wants.

        Slots are distinct, `rows` tokens at most. Raises UserError, and leaves all caches as they were, for
        tokens the model does not know and for a cache that is full.
        """
        engine, caches = self.engine, self.caches
        ids = np.concatenate([np.asarray(part.tokens, np.int32) for part in parts])
        if len(ids) > self.rows or len({part.slot for part in parts}) != len(parts):
            raise ValueError(f"a step takes at most {self.rows} tokens, and a slot once")
        if int(ids.min()) < 0 or int(ids.max()) >= engine.architecture.vocabulary:
            raise UserError(
                f"the model knows tokens 0 to {engine.architecture.vocabulary - 1}.", field="tokens"
            )
        for part in parts:
            caches[part.slot].require(len(part.tokens))
        if engine.architecture.changes_at is not None:
            return [self._alone(part) for part in parts]
        step: Any = PooledStep(parts, caches)
        checked_positions(step.positions, None, engine.architecture.positions)
        self._forward.observer, self._forward.levels = engine.forward.observer, engine.forward.levels
        hidden = engine._embed(ids, step.positions)
        for block in engine.architecture.blocks:
            layer: Any = self.pool.layers[block.index]
            with engine.held.weights(block.index) as weights:
                self._forward.advance(block, hidden, step, layer, weights)
                if engine.tally:
                    engine.tally.take(block.index, weights)
        runs = step.runs.tolist()
        for row, count, slot, entry in runs:
            caches[slot].positions[entry : entry + count] = step.positions[row : row + count]
            caches[slot].append(count, True)
        return self._outputs(parts, runs, hidden)

    def _alone(self, part: Part) -> F32 | None:
        """One text's part, for models that may have to read a text again (see `_switch`)."""
        logits, hidden = self.engine.step(part.tokens, cache=self.caches[part.slot], want=part.want)
        if part.want == "hidden":
            return hidden
        return logits if logits is None or part.want == "all" else logits[-1]

    def _outputs(self, parts: Sequence[Part], runs: list[list[int]], hidden: F32) -> list[F32 | None]:
        found: list[F32 | None] = [None] * len(parts)
        last = [index for index, part in enumerate(parts) if part.want == "last"]
        if last:
            ends = [runs[index][0] + runs[index][1] - 1 for index in last]
            chosen = hidden if len(ends) == len(hidden) else hidden[ends]
            logits, _ = self.engine._outputs(chosen, "all")
            assert logits is not None
            for at, index in enumerate(last):
                found[index] = logits[at]
        for index, part in enumerate(parts):
            row, count = runs[index][:2]
            if part.want == "hidden":
                found[index] = self.engine._outputs(hidden[row : row + count], "hidden")[1]
            elif part.want == "all":
                found[index] = self.engine._outputs(hidden[row : row + count], "all")[0]
        return found
