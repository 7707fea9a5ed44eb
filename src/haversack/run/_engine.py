"""The language engine: one step over any tokens, and the methods that fill the slots of a run.

    engine = Engine.open("code")
    cache = engine.cache(64)
    logits, _ = engine.step([5, 7, 9], cache=cache)        # f32 [1, vocabulary]

A step's bits do not depend on how many tokens it has: eight tokens at once equal eight steps, exactly.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from haversack.core.budget import Budget
from haversack.core.errors import UserError, not_allowed
from haversack.core.memory import MIB, MemoryPlan
from haversack.core.method import Method
from haversack.core.pack import Pack, TensorSource
from haversack.run._cache import CACHE_TYPES, Cache
from haversack.run._forms import check_activations
from haversack.run._forward import ROWS, Forward, Observer
from haversack.run._memory import planned_memory, program_mib
from haversack.run._reading import begin, listened
from haversack.run._residency import experts_of
from haversack.run._slots import Slots, choose
from haversack.run._source import Model, kind_of, open_model, traits_of
from haversack.run._sparsity import Tally
from haversack.run._step import Mask, checked_positions, is_linear, split
from haversack.run._switch import read_across
from haversack.run._units import aside_nbytes
from haversack.run._weights import F32, check_tensors, kinds_of, nbytes, require_static
from haversack.run._window import BACK, whole, windows_of

if TYPE_CHECKING:
    from haversack.run._head_predictor import HeadPredictor

I32 = npt.NDArray[np.int32]
WANTS = ("last", "all", "none", "hidden")
ACTIVATIONS = ("f32", "int8-dynamic", "int8-static")
EMBED_ROWS = 64
"""Tokens looked up in the embedding at once."""


class Engine:
    """A model that is ready to step; made by `Engine.open`. A context manager that gives the weights back."""

    def __init__(
        self,
        model: Model,
        slots: Slots,
        activations: str,
        cache_type: str,
        context_length: int | None,
        budget: Budget | None,
        whole_cache: bool = False,
    ) -> None:
        self.model = model
        self.architecture = model.architecture
        self.slots = slots
        self.activations = activations
        self.cache_type = cache_type
        self.budget = budget
        self.context_length = context_length or model.architecture.context
        self._given_context = context_length
        self.windows = (
            whole(model.architecture) if whole_cache else windows_of(model.architecture, slots.attention)
        )
        self.forward = Forward(model.architecture, activations=activations, attention=slots.attention)
        self.held: Any = None
        self.tally = Tally(model.source, model.architecture)
        self.reader: Any = None
        self.draft_model: Model | None = None
        self.draft: Engine | None = None
        self.head_predictor: HeadPredictor | None = None
        self.learned: Any = None
        """What the decode method keeps from one answer for the next."""
        self.prepared: Any = None
        """What the prefill method keeps from one prompt for the next; has a `close`."""
        self.told: Any = None
        """How the prefill method read the last prompt, where it tells: `words()` and `record()`."""
        self.load_ms = 0.0

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str] | TensorSource | Model,
        *,
        residency: str | Method | None = None,
        attention: str | Method | None = None,
        context: str | Method = "tokens",
        prefill: str | Method = "whole",
        decode: str | Method = "one-by-one",
        draft: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        activations: str | None = None,
        cache_type: str | None = None,
        threads: int | None = None,
        context_length: int | None = None,
        budget: Budget | None = None,
        tokens: tuple[int, int] | None = None,
        whole_cache: bool = False,
    ) -> Self:
        """Open `source` (a pack, a checkpoint folder, a bundled name, or what `open_model` gave) for a run.

        The slots take `NAME` or `NAME:key=value,...`. `residency`, `attention`, `activations` and
        `cache_type` default to the pack's plan (else mapped, dense, f32, f32). `draft` is the draft model of
        a decode method that needs one, `key` the file of the key of a sealed pack. `context_length` bounds
        the tokens of a cache (default: the model's context). `budget.ram_mib` is checked before weights are
        read, for `tokens` = (prompt, answer) when known, else for a full context. Layers with a window keep
        that and not the whole text, unless `whole_cache`. Raises UserError for what cannot be opened, does
        not fit together or does not fit the budget.
        """
        model = source if isinstance(source, Model) else open_model(source, reader=True)
        check_tensors(model.source, model.architecture)
        slots = choose(
            residency=residency or str(model.plan.get("residency") or "mapped"),
            attention=attention or str(model.plan.get("attention") or "dense"),
            context=context,
            prefill=prefill,
            decode=decode,
            draft=draft,
            key=key,
            traits=(*traits_of(model.source), *kind_of(model.architecture)),
        )
        activations = activations or model.activations
        if activations not in ACTIVATIONS:
            raise not_allowed("activations", activations, ACTIVATIONS)
        if activations == "int8-static":
            require_static(model.source, model.architecture)
        check_activations(model.source, activations)
        cache_type = cache_type or str(model.plan.get("cache_type") or "f32")
        if cache_type not in CACHE_TYPES:
            raise not_allowed("cache_type", cache_type, CACHE_TYPES)
        if context_length is not None and not 1 <= context_length <= model.architecture.context:
            raise UserError(
                f"context_length={context_length} is outside 1 to the model's {model.architecture.context}.",
                field="context_length",
                given=context_length,
                nearest=min(max(context_length, 1), model.architecture.context),
            )
        if threads is not None:
            from haversack.kernels import set_threads

            set_threads(threads)
        engine = cls(model, slots, activations, cache_type, context_length, budget, whole_cache)
        slots.prepare(engine)
        engine.require_memory(tokens)
        began = time.perf_counter()
        engine._load(tokens)
        engine.load_ms = 1e3 * (time.perf_counter() - began)
        return engine

    def _load(self, tokens: tuple[int, int] | None) -> None:
        source = self.model.source
        if isinstance(source, Pack) and not source.sealed:  # sealed blocks are authenticated at every read
            residency = self.slots.residency
            checked = getattr(residency, "checks", ())
            source.verify_once(keep_cached=residency.name == "mapped", without=checked)
        self.held = self.slots.residency.open(source, self.architecture, self._weights_limit(tokens))
        self.forward.experts = experts_of(self.held)
        self.forward.learn_distances(self.held.top)
        if "weight-type:nested" in traits_of(source):
            from haversack.run._levels import router_of

            chosen = getattr(self.held, "levels", None)
            self.forward.levels = chosen or router_of(source, self.architecture)
        if self.draft_model is not None:
            self.draft = Engine.open(self.draft_model, cache_type=self.cache_type)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the weights back, the draft's included; the engine cannot step any more."""
        for part in (self.prepared, self.draft, self.held):
            if part is not None:
                part.close()
        close = getattr(self.learned, "close", None)  # a connection, say
        if close is not None:
            close()

    def observe(self, observer: Observer | None) -> None:
        """Tell `observer` what every router of a mixture of experts chooses (`layers.mixture.Routing`), once
        for each call of at most 256 tokens; None ends it. `_routing.RoutingTrace` is one that keeps it.
        """
        self.forward.observer = observer

    @property
    def plan(self) -> dict[str, Any]:
        """One choice per slot, and the types that numbers travel in."""
        from haversack import kernels

        kinds = kinds_of(self.model.source, [linear.weight for linear in self.architecture.matrices()])
        return {
            "precision": str(self.model.plan.get("precision") or f"as stored ({', '.join(kinds)})"),
            **self.slots.record(),
            "activations": self.activations,
            "cache_type": self.cache_type,
            "cache_keeps": "windows" if self._slides() else "everything",
            "threads": kernels.threads(),
            "isa": kernels.isa(),
        }

    def _slides(self) -> bool:
        """Whether a full context leaves something out of the cache."""
        context = self.context_length
        return any(window is not None and window.entries(context) < context for window in self.windows)

    def memory_plan(self, tokens: tuple[int, int] | None = None) -> MemoryPlan:
        """What a run will hold, for `tokens` = (prompt, answer), or for a full context when None."""
        return self._planned(tokens, self._ram_limit())

    def _planned(self, tokens: tuple[int, int] | None, limit: int | None) -> MemoryPlan:
        source, architecture = self.model.source, self.architecture
        prompt = tokens[0] if tokens else self.context_length
        needed = self.taken(tokens[0]) + tokens[1] if tokens else self.context_length
        capacity = self._given_context or needed
        plan = planned_memory(
            architecture,
            blocks=[nbytes(source, block.tensors()) for block in architecture.blocks],
            top=nbytes(source, architecture.top_tensors()),
            residency=self._fitted(),
            cache_type=self.cache_type,
            base_mib=program_mib(),
            context=min(capacity, self.context_length),
            tokenizer_nbytes=getattr(source, "tokenizer_nbytes", None),
            prompt=self.slots.prefill.most_at_once(prompt),
            files=len(source.files),
            limit=limit,
            aside=aside_nbytes(source, architecture),
            windows=self.windows,
        )
        if self.head_predictor is not None:
            plan += MemoryPlan((("predictor of output rows", 2 * self.head_predictor.nbytes),))
        more = getattr(self.slots.attention, "planned", None)
        if more is not None:
            plan += MemoryPlan(more(architecture, min(prompt, self.context_length), self.cache_type))
        more = getattr(self.slots.prefill, "planned", None)
        if more is not None:
            plan += MemoryPlan(more(architecture, min(prompt, self.context_length)))
        program = getattr(self.slots.decode, "program_mib", None)
        if program is not None:
            plan += MemoryPlan((("decode: program", int(program * MIB)),))
        return plan if self.draft_model is None else plan + self._draft_plan(capacity)

    def _fitted(self) -> Any:
        """The residency, made for this model where it has a `fitted`."""
        residency = self.slots.residency
        fitted = getattr(residency, "fitted", None)
        return residency if fitted is None else fitted(self.model.source, self.architecture)

    def _draft_plan(self, capacity: int) -> MemoryPlan:
        """What the draft model takes beside the model; program and tokenizer are shared."""
        assert self.draft_model is not None
        source, architecture = self.draft_model.source, self.draft_model.architecture
        spare = getattr(self.slots.decode, "spare", 0)
        plan = planned_memory(
            architecture,
            blocks=[nbytes(source, block.tensors()) for block in architecture.blocks],
            top=nbytes(source, architecture.top_tensors()),
            cache_type=self.cache_type,
            context=min(capacity, architecture.context) + spare,
            back=max(BACK, spare),
        )
        return MemoryPlan(tuple((f"draft: {label}", count) for label, count in plan.lines[2:]))

    def _ram_limit(self) -> int | None:
        return None if self.budget is None or self.budget.ram_mib is None else int(self.budget.ram_mib * MIB)

    def _weights_limit(self, tokens: tuple[int, int] | None) -> int | None:
        """Bytes that the budget leaves for weights."""
        limit = self._ram_limit()
        if limit is None:
            return None
        rest = (
            count for label, count in self._planned(tokens, None).lines if not label.startswith("weights")
        )
        return limit - sum(rest)

    def require_memory(self, tokens: tuple[int, int] | None = None) -> None:
        """Raises BudgetError, naming the smallest that would do, when the plan exceeds the budget's
        memory.
        """
        if self._ram_limit() is not None and self.budget is not None:
            needed = self._planned(tokens, 0).total_mib
            self.budget.require({"ram_mib": needed}, f"running {self.model.path.name}")

    def cache(self, capacity: int | None = None, *, back: int = BACK, whole: bool = False) -> Cache:
        """An empty cache of `capacity` tokens (default: the context length).

        Layers with a window keep that, and as much before it that a text can be cut back by `back` entries
        at any time; with `whole` every layer keeps everything.
        """
        windows = None if whole else self.windows
        made = Cache(
            self.architecture, capacity or self.context_length, self.cache_type, windows=windows, back=back
        )
        wipe_later = getattr(self.held, "wipe_later", None)
        if wipe_later is not None:
            wipe_later(made)
        return made

    def step(
        self,
        tokens: Sequence[int] | I32,
        positions: I32 | None = None,
        mask: Mask | None = None,
        cache: Cache | None = None,
        want: str = "last",
    ) -> tuple[F32 | None, F32 | None]:
        """Read `tokens` i32 [n], which become the cache's next n entries; returns (logits, hidden).

        `positions` i32 [n] default to those after the cache's entries. `mask` bool [n, m + n] says which of
        the cache's last m entries and of the new tokens each sees (None: itself and all before it; a tree
        names its own); entries before those are seen by all. `want`: `last` gives logits f32 [1, vocabulary]
        and the normalized hidden state they came from, `all` those of every token, `hidden` only hidden
        states f32 [n, width], `none` nothing. Raises UserError, and leaves the cache as it was, for tokens
        the model does not know, for shapes that do not fit and for a cache that is full.
        """
        if cache is None:
            raise UserError("step needs a cache; engine.cache(capacity) makes one.", field="cache")
        if want not in WANTS:
            raise not_allowed("want", want, WANTS)
        ids = self._known(tokens)
        n = ids.size
        cache.require(n)
        if positions is None:
            positions = np.arange(cache.length, cache.length + n, dtype=np.int32)
        else:
            positions = np.ascontiguousarray(positions, np.int32)
            if positions.shape != ids.shape:
                raise UserError(f"{n} tokens stand at {positions.size} positions.", field="positions")
        checked_positions(positions, mask, self.architecture.positions, cache.length)
        beyond = self.architecture.changes_at
        if beyond is None:
            hidden = self._read(ids, positions, mask, cache)
        else:
            hidden = read_across(self._read, beyond, ids, positions, mask, cache)
        return self._outputs(hidden, want)

    def _known(self, tokens: Sequence[int] | I32) -> I32:
        """`tokens` as i32 [n]. Raises UserError for none, for another shape and for unknown tokens."""
        try:
            ids = np.ascontiguousarray(tokens, np.int32)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError("a step takes tokens as i32 [n].", field="tokens") from error
        n = ids.size
        if ids.ndim != 1 or n == 0:
            raise UserError("a step takes at least one token, as i32 [n].", field="tokens")
        if n == 1:
            lowest = highest = int(ids[0])
        else:
            lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= self.architecture.vocabulary:
            raise UserError(
                f"the model knows tokens 0 to {self.architecture.vocabulary - 1}, not "
                f"{lowest if lowest < 0 else highest}.",
                field="tokens",
                given=lowest if lowest < 0 else highest,
            )
        return ids

    def _read(self, ids: I32, positions: I32, mask: Mask | None, cache: Cache) -> F32:
        forward, held = self.forward, self.held
        cache.place(positions, ids)
        hidden = self._embed(ids, positions)
        parts = split(cache, positions, mask, getattr(held, "rows_at_once", ROWS))
        if self.tally and cache.sparse_from:
            for part, step in parts:
                step.reads = positions[part] < cache.sparse_from
        stretches = cache.stretches
        if stretches:
            cache.plan([step for _, step in parts])
        for block in self.architecture.writing:
            layer = cache.layers[block.index]
            stretch = stretches.get(block.index) if stretches else None
            with held.weights(block.index) as weights:
                cross = listened(forward, block, cache, weights)
                if self.reader is not None:
                    self.reader.begin(block, hidden, parts, weights, cache, self.activations)
                if len(parts) == 1:
                    step = parts[0][1] if stretch is None else stretch.step(block.index, layer, 0)
                    forward.advance(block, hidden, step, layer, weights, None, cross)
                else:
                    for index, (part, step) in enumerate(parts):
                        own = step if stretch is None else stretch.step(block.index, layer, index)
                        forward.advance(block, hidden[part], own, layer, weights, None, cross)
                if self.tally:
                    self.tally.take(block.index, weights)
        cache.append(len(ids), is_linear(cache, positions))
        return hidden

    def read(self, tokens: Sequence[int] | I32, cache: Cache) -> F32:
        """Read the `tokens` of a prompt; returns the logits f32 [1, vocabulary] of the first token after it.
        Raises UserError like `step`.

        A decoder reads them after what `cache` holds. Where there is an encoder that reads them, what is
        written begins anew and the cache has its keys and values beside those of the written tokens.
        """
        reader = self.architecture.reader
        if reader is not None:
            begin(self, self._known(tokens), cache)
        logits, _ = self.step(tokens if reader is None else (reader.start,), None, None, cache)
        assert logits is not None
        return logits

    def taken(self, prompt: int) -> int:
        """Entries of a cache that a prompt of so many tokens takes: one, the beginning of what is written,
        where an encoder reads it.
        """
        return prompt if self.architecture.reader is None else 1

    def _embed(self, ids: I32, positions: I32, matrix: str | None = None) -> F32:
        if len(ids) > EMBED_ROWS:
            hidden = np.empty((len(ids), self.architecture.width), np.float32)
            for start in range(0, len(ids), EMBED_ROWS):
                part = slice(start, start + EMBED_ROWS)
                hidden[part] = self._embed(ids[part], positions[part], matrix)
            return hidden
        table, rows = self.held.rows(ids, matrix)
        learned = self.architecture.positions
        places = None
        if learned is not None:
            places = self.held.rows(positions + np.int32(learned.offset), learned.weight)
        return self.forward.embed(rows, table, self.held.top, places)

    def _outputs(self, hidden: F32, want: str) -> tuple[F32 | None, F32 | None]:
        if want == "none":
            return None, None
        top = self.held.top
        normal = self.forward.finish(hidden[-1:] if want == "last" else hidden, top)
        if want == "hidden":
            return None, normal
        logits = np.empty((len(normal), self.architecture.vocabulary), np.float32)
        bias = self.architecture.head.bias
        for first, matrix in self.held.head():
            part = slice(first, first + matrix.rows)
            addend = None if bias is None else top[bias][part]
            if matrix.rows == self.architecture.vocabulary or len(normal) == 1:
                self.forward.head(normal, matrix, logits[:, part], addend)
            else:
                logits[:, part] = self.forward.head(normal, matrix, None, addend)
        return logits, normal
