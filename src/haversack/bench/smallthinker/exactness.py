"""Streaming matrices changes no token and keeps to its bytes; what the hybrid's keys and values take; and the
published figures that need the released models."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench._streaming import process_over_budget
from haversack.bench.edgemoe.speed import decode
from haversack.bench.smallthinker import _twins
from haversack.bench.smallthinker._bench import bench
from haversack.bench.smallthinker.speed import MATRICES, PRECISION, sizes

PLACES = (6, 9, 24, 48, MATRICES)
PROMPT, TOKENS = 40, 40


def grid(run: Run) -> list[tuple[str, str, str, int, int]]:
    """Ways to stream: twin, precision, reading early or late, micro-batch, places; of a quick run a fifth."""
    ways = list(
        itertools.product(_twins.TWINS, (PRECISION, "keep:kind=f32"), ("true", "false"), (1, 8), PLACES)
    )
    if run.quick:
        drawn = np.random.default_rng(run.seed).permutation(len(ways))[: len(ways) // 5]
        ways = [ways[int(index)] for index in drawn]
    return ways


@bench.measure(
    Row(
        "tokens",
        "tokens that differ from those of the same model in memory: twins by precisions by orders of reading "
        "by micro-batches by buffer sizes",
        "tokens",
        "quality",
        Bar("==", 0.0),
        judged="ours",
        quick=True,
    ),
    Row(
        "buffer-bytes",
        "most bytes of matrices held, over the bytes allowed, the worst of the same runs",
        "share",
        "memory",
        Bar("<=", 1.0),
        judged="ours",
        quick=True,
    ),
    seconds=120,
    quick_seconds=20,
)
def streamed(run: Run) -> Outcomes:
    _twins.trained(run)
    from haversack.run import Engine

    prompt = _twins.prompts(1, PROMPT, run.seed)[0]
    plain: dict[tuple[str, str], list[int]] = {}
    differing, shares = 0, []
    ways = grid(run)
    for twin, precision, early, batch, places in ways:
        path = _twins.pack(twin, precision)
        if (twin, precision) not in plain:
            with Engine.open(path, residency="copied", activations="f32") as engine:
                plain[twin, precision] = decode(engine, prompt, TOKENS)[1]
        place = sizes()[1] if precision == PRECISION else 4 * _twins.WIDTH * _twins.INNER + 4096
        way = f"buffer_kib={-(-place * places // 1024)},early={early},micro_batch={batch}"
        with Engine.open(path, residency=f"streamed:smallthinker,{way}", activations="f32") as engine:
            _, tokens = decode(engine, prompt, TOKENS)
            differing += sum(a != b for a, b in zip(tokens, plain[twin, precision], strict=True))
            shares.append(engine.held.buffer.statistics.peak_nbytes / engine.held.budget)
    note = f"{len(ways)} ways, {TOKENS} tokens each"
    return {
        "tokens": Outcome.single(differing, name="streamed", note=note),
        "buffer-bytes": Outcome(Side("held", (max(shares),)), note=note),
    }


@bench.measure(
    Row(
        "process-bytes",
        "peak memory of the whole process, pages of the pack in the page cache included, over its budget",
        "share",
        "memory",
        Bar("<=", 1.0),
        judged="ours",
        quick=True,
    ),
    seconds=20,
    quick_seconds=10,
)
def resident(run: Run) -> Outcomes:
    _twins.trained(run)
    path, prompt = _twins.pack("early", "keep:kind=f32"), _twins.prompts(1, PROMPT, run.seed)[0]
    # Room for some forty of the 96 matrices of 0.1 MiB.
    share, note = process_over_budget(path, prompt, TOKENS, "streamed:smallthinker", 4.0, "matrices")
    return {"process-bytes": Outcome.single(share, name="SmallThinker", note=note)}


CONTEXT, WINDOW, HYBRID = 16384, 4096, 0.4375


@bench.measure(
    Row(
        "kv-hybrid",
        "bytes of keys and values at a context of 16k with windows of 4,096 in three of four layers, as this "
        "engine holds them, over those of full layers",
        "bytes",
        "bytes",
        Bar("<=", HYBRID),
        published=HYBRID,
        quick=True,
    ),
    Row(
        "kv-read",
        "entries of the cache that a token reads at the end of that context, over those of full layers",
        "entries",
        "bytes",
        Bar("<=", HYBRID),
        published=HYBRID,
        quick=True,
    ),
    seconds=1,
    quick_seconds=1,
)
def keys_and_values(run: Run) -> Outcomes:
    from haversack.models import read_architecture
    from haversack.run import Cache
    from haversack.run._window import windows_of

    def shape(slides: bool) -> Any:
        layout = [int(slides and index % 4 != 0) for index in range(52)]
        config = {
            "model_type": "smallthinker",
            "vocab_size": 151_936,
            "hidden_size": 2560,
            "num_hidden_layers": 52,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "moe_ffn_hidden_size": 768,
            "moe_num_primary_experts": 64,
            "moe_num_active_primary_experts": 6,
            "max_position_embeddings": CONTEXT,
            "rope_layout": layout,
            "sliding_window_layout": layout,
            "sliding_window_size": WINDOW,
        }
        return read_architecture(config)

    hybrid, full = shape(True), shape(False)
    caches = [Cache(one, CONTEXT, "f16", windows=windows_of(one)) for one in (hybrid, full)]
    least = min(layer.capacity for layer in caches[0].layers if layer is not None)
    note = (
        f"a layer has room for {least:,} entries, {least - WINDOW} more than its window: for the tokens of a "
        "step, and for those that a draft or a chat takes back"
    )
    read = [
        sum(min(CONTEXT, block.attention.window or CONTEXT) for block in one.blocks) for one in (hybrid, full)
    ]
    return {
        "kv-hybrid": Outcome.single(
            *(cache.nbytes for cache in caches), name="hybrid", against="full", note=note
        ),
        "kv-read": Outcome.single(*read, name="hybrid", against="full"),
    }


@bench.measure(
    Row(
        "speed-21b",
        "SmallThinker-21B-A3B in Q4_0: tokens a second on a desktop processor, all in memory and in 8 GB",
        "tokens/s",
        "time",
        published="30.19 and 20.30 (i9-14900); Qwen3-30B-A3B 33.52 and 10.11",
    ),
    Row(
        "speed-4b",
        "SmallThinker-4B-A0.6B in Q4_0: tokens a second, all in memory and in 1 GB",
        "tokens/s",
        "time",
        published="108.17 and 29.99 (i9-14900); Qwen3-1.7B in 1 GB 2.66",
    ),
    Row(
        "quality-21b",
        "SmallThinker-21B-A3B-Instruct on MMLU, GPQA, MATH-500, IFEval, LiveBench, HumanEval: mean",
        "score",
        "quality",
        published="76.26; Qwen3-14B 75.42, Qwen3-30B-A3B 74.54",
    ),
    seconds=1,
)
def published(run: Run) -> Outcomes:
    raise Unavailable(
        "the released checkpoints (2 and 11 GB) are not at hand here; real-size measures a shape"
    )
