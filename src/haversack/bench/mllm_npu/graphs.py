"""What has to be built for twenty prompt lengths: graphs that chunks share, or graphs for every length."""

from __future__ import annotations

from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.mllm_npu._bench import bench
from haversack.bench.mllm_npu._models import pack_of

CHUNK = 256
LENGTHS = tuple(int(length) for length in np.linspace(56, 1016, 20))
MOST = 4 * CHUNK


def graphs_of(engine: Any, rows: int) -> Any:
    """The subgraphs of one shape over the engine's weights."""
    from haversack.run.prefill._graphs import Graphs

    blocks = []
    for block in engine.architecture.blocks:
        with engine.held.weights(block.index) as weights:
            blocks.append(weights)
    return Graphs(engine.architecture, blocks, rows, "pruned", engine.slots.attention.attend)


def built(engine: Any, lengths: tuple[int, ...], chunk: int | None) -> tuple[int, int]:
    """Graphs that prompts of `lengths` make necessary, and bytes of a processor that compiles weights into
    its graphs: in chunks of `chunk` tokens, or (None) each length on its own.
    """
    if chunk is None:
        made = [graphs_of(engine, length) for length in sorted(set(lengths))]
        for one in made:
            one.of_chunk(0)
        return sum(one.built for one in made), sum(one.compiled_nbytes() for one in made)
    graphs = graphs_of(engine, chunk)
    for length in lengths:
        for start in range(0, length, chunk):
            graphs.of_chunk(start)
    return graphs.built, graphs.compiled_nbytes()


@bench.measure(
    Row(
        "graph-count",
        f"graphs built for {len(LENGTHS)} prompt lengths: shared by chunks of {CHUNK}, beside a set a length",
        "graphs",
        "bytes",
        Bar("<=", 0.25),
        published="120 of 144 subgraphs shared (Qwen1.5-1.8B)",
        quick=True,
    ),
    Row(
        "graph-memory",
        f"weights and buffers that the graphs of {len(LENGTHS)} prompt lengths hold, where weights are "
        "compiled in",
        "MiB",
        "memory",
        Bar("<=", 0.25),
        quick=True,
    ),
    Row(
        "graph-memory-1024",
        f"the same for one prompt of 1024 tokens in chunks of {CHUNK}, beside a set of graphs a chunk",
        "MiB",
        "memory",
        published="75 % less (7.2 GB) for Qwen1.5-1.8B",
    ),
    Row(
        "graph-shared",
        "subgraphs that all chunks share, of all of a chunk's",
        "share",
        "bytes",
        published="120 of 144",
    ),
    seconds=10,
    quick_seconds=5,
)
def graphs(run: Run) -> Outcomes:
    from haversack.run._engine import Engine

    with Engine.open(pack_of("pruned")) as engine:
        ours, theirs = built(engine, LENGTHS, CHUNK), built(engine, LENGTHS, None)
        one = graphs_of(engine, CHUNK)
        shared = sum(not shape.attention for shape in one.shapes)
        chunks = MOST // CHUNK
        apart = chunks * one.compiled_nbytes()
    note = f"lengths {LENGTHS[0]} to {LENGTHS[-1]}"
    return {
        "graph-count": Outcome.single(ours[0], theirs[0], name="shared", against="a set a length", note=note),
        "graph-memory": Outcome.single(
            ours[1] / 2**20, theirs[1] / 2**20, name="shared", against="a set a length", note=note
        ),
        "graph-memory-1024": Outcome.single(
            one.compiled_nbytes() / 2**20, apart / 2**20, name="shared", against="a set a chunk"
        ),
        "graph-shared": Outcome.single(
            shared / len(one.shapes), note=f"{shared} of {len(one.shapes)}; attention depends on the chunk"
        ),
    }
