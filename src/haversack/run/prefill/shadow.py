"""Chunked prefill on an integer processor with static shapes, its outliers in the shadow of one for floats.

Paper: Xu et al. (the list of authors is [recalled]), "Fast On-device LLM Inference with NPUs" (ASPLOS 2025;
arXiv 2407.05858, 2024).
What is here: a prompt is cut into chunks of `tokens` tokens, the last one filled up; blocks are subgraphs of
that one shape (_graphs.py), built once and shared by all chunks, and attention, which is made for each place
that a chunk begins at. Products run in static int8; what their grids miss is added in floats where the pack
keeps that (`shadow`: pruned), everywhere (all) or nowhere (none). The two processors are played by this
machine's cores (_executors.py) and take subgraphs by `policy` (_schedule.py). Only the last chunk's last
token meets the output matrix. `trace` names a file for what ran when. Packs of --precision mllm-npu have what
this needs.
What we changed: a prompt that fills its chunks gets no chunk more, where the published code adds one. Rows
that fill a chunk up are computed by the integer processor alone, and never reach the cache. The times that
the schedule believes are counted from the shapes, where the paper profiles them.
Decoding goes on from the same cache with the same int8 weights, grids and kept shadows, one token at a time.
Cost: buffers for the whole prompt, rows of the last chunk that nobody reads. With shadow=pruned the bits are
those of a whole prefill with int8-static activations.
Limits: attention methods that see entries by their places (dense, sliding); weights of all blocks in memory
or mapped; no mixtures of experts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter

if TYPE_CHECKING:
    from haversack.models._architecture import Architecture
    from haversack.run._cache import Cache
    from haversack.run._engine import Engine
    from haversack.run.prefill._executors import Executor, Span
    from haversack.run.prefill._graphs import Graphs

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Told:
    """How a prompt was read. `build_ms`: graphs that had to be made; `load_ms`: opening the weights;
    `busy_ms`: processor -> milliseconds at work; `spans`: what ran when."""

    tokens: int
    chunks: int
    graphs: int
    load_ms: float
    build_ms: float
    run_ms: float
    busy_ms: Mapping[str, float]
    spans: Sequence[Span]

    def record(self) -> dict[str, Any]:
        """As `run --json` holds it."""
        return {
            "chunks": self.chunks,
            "graphs_built": self.graphs,
            "load_ms": round(self.load_ms, 3),
            "build_ms": round(self.build_ms, 3),
            "run_ms": round(self.run_ms, 3),
            "busy_ms": {name: round(value, 3) for name, value in self.busy_ms.items()},
        }

    def words(self) -> str:
        """One line for people."""
        busy = ", ".join(f"{name} {value:.0f} ms" for name, value in self.busy_ms.items())
        return (
            f"prefill: {self.chunks} chunks of {self.tokens}; load {self.load_ms:.0f} ms, build "
            f"{self.build_ms:.0f} ms ({self.graphs} graphs), run {self.run_ms:.0f} ms (busy: {busy})"
        )


@dataclass
class Prepared:
    """What an engine keeps between prompts: its graphs, and the weights they are bound to."""

    graphs: Graphs
    weights: ExitStack

    def close(self) -> None:
        """Give the weights back."""
        self.weights.close()


@dataclass(frozen=True)
class ChunkedShadow(Method):
    name = "chunked:shadow"
    stage = "run"
    slot = "prefill"
    paper = "Xu et al., Fast On-device LLM Inference with NPUs (ASPLOS 2025; arXiv 2407.05858)"
    summary = "Chunks of one shape through int8 graphs, outliers added in floats, on two processors at once."
    system = 36
    provides = frozenset({"static-shapes"})
    requires = frozenset({"shadow-outliers", "blocks-at-hand"})
    excludes = frozenset({"encoder-decoder"})

    tokens: int = parameter(64, allowed=(8, 16, 32, 64, 128, 256), help="tokens in one chunk")
    policy: str = parameter(
        "out-of-order", allowed=("serial", "chunk", "out-of-order"), help="what a free processor takes"
    )
    shadow: str = parameter(
        "pruned", allowed=("all", "pruned", "none"), help="which matrices' outliers are added in floats"
    )
    cores: str = parameter(
        "shared", allowed=("shared", "apart"), help="processors share all cores, or have one each"
    )
    trace: str = parameter("", help="file for what ran when, as trace viewers open it")

    def most_at_once(self, prompt: int) -> int:
        """Tokens whose hidden states are in memory together."""
        return -(-prompt // self.tokens) * self.tokens

    def planned(self, architecture: Architecture, prompt: int) -> tuple[tuple[str, int], ...]:
        """Lines of the memory plan: every chunk has buffers of its own."""
        from haversack.run.prefill._graphs import buffer_widths

        return (("buffers of chunks", 4 * self.most_at_once(prompt) * buffer_widths(architecture)),)

    def prepare(self, engine: Engine) -> None:
        """Raises UserError for what cannot be read so."""
        if engine.activations != "int8-static":
            raise UserError(
                f"chunked:shadow multiplies static integers, not {engine.activations} activations; use "
                "--activations int8-static.",
                field="activations",
                given=engine.activations,
                nearest="int8-static",
            )
        if engine.architecture.changes_at is not None:
            raise UserError(
                "chunked:shadow does not read models whose positions change with the length of a text; use "
                "--prefill chunked.",
                field="prefill",
                given=self.name,
                nearest="chunked",
            )

    def prefill(self, engine: Engine, tokens: I32, cache: Cache) -> F32:
        """Read `tokens` i32 [n]; returns the logits f32 [1, vocabulary] after the last.

        Raises UserError, and leaves the cache as it was, for no tokens and for more than the cache holds.
        """
        from haversack.run.prefill._executors import Executor, write_trace
        from haversack.run.prefill._schedule import PROCESSORS

        ids = engine._known(tokens)
        cache.require(len(ids))
        began = time.perf_counter()
        graphs, before = self._graphs(engine)
        shapes = graphs.shapes
        executor = Executor(shapes, self.policy, self.cores)
        build_ms = 1e3 * (time.perf_counter() - began)
        hidden, built_ms = self._read(engine, graphs, executor, ids, cache)
        logits, _ = engine._outputs(hidden, "last")
        assert logits is not None
        run_ms = 1e3 * (time.perf_counter() - began) - build_ms - built_ms
        engine.told = Told(
            self.tokens,
            -(-len(ids) // self.tokens),
            graphs.built - before,
            engine.load_ms,
            build_ms + built_ms,
            run_ms,
            {one: executor.busy_ms(one) for one in PROCESSORS},
            executor.spans,
        )
        if self.trace:
            write_trace(Path(self.trace), shapes, executor.spans)
        return logits

    def _graphs(self, engine: Engine) -> tuple[Graphs, int]:
        """The engine's graphs, made at its first prompt, and how many had been built before."""
        from haversack.run.prefill._graphs import Graphs

        if isinstance(engine.prepared, Prepared):
            return engine.prepared.graphs, engine.prepared.graphs.built
        stack = ExitStack()
        blocks = [stack.enter_context(engine.held.weights(b.index)) for b in engine.architecture.blocks]
        attend = engine.slots.attention.attend
        graphs = Graphs(engine.architecture, blocks, self.tokens, self.shadow, attend)
        engine.prepared = Prepared(graphs, stack)
        return graphs, 0

    def _read(
        self, engine: Engine, graphs: Graphs, executor: Executor, ids: I32, cache: Cache
    ) -> tuple[F32, float]:
        """The hidden state f32 [1, width] behind the last of `ids`, and the milliseconds that attention's
        graphs took to make."""
        from haversack.run._step import Step, checked_positions, is_linear
        from haversack.run.prefill._graphs import Chunk, Prompt

        start, rows = cache.length, self.tokens
        cache.horizon = max(cache.horizon, start + len(ids))
        cache.sparse_from = max(cache.sparse_from, start + len(ids))
        positions = np.arange(start, start + len(ids), dtype=np.int32)
        checked_positions(positions, None, engine.architecture.positions, start)
        linear = is_linear(cache, positions)
        cache.place(positions, ids)
        chunks = []
        for number, first in enumerate(range(0, len(ids), rows)):
            part = slice(first, min(first + rows, len(ids)))
            held = None if linear else cache.positions[: start + first]
            step = Step(positions[part], start + first, None, held, cache.horizon)
            hidden = np.zeros((rows, engine.architecture.width), np.float32)
            count = part.stop - first
            hidden[:count] = engine._embed(ids[part], positions[part])
            chunks.append(Chunk(number, hidden, count, step, cache.layers))
        began = time.perf_counter()
        made = [graphs.of_chunk(chunk.step.start) for chunk in chunks]
        built_ms = 1e3 * (time.perf_counter() - began)
        times = [
            [graph.cost(chunk.step.start, rows) for graph in sequence]
            for chunk, sequence in zip(chunks, made, strict=True)
        ]
        prompt = Prompt(chunks)
        executor.execute(times, lambda chunk, index: made[chunk][index].run(prompt, chunks[chunk]))
        cache.append(len(ids), linear)
        last = chunks[-1]
        return last.hidden[last.count - 1 : last.count], built_ms
