"""Streamed experts change no token and keep to their bytes, whatever is guessed and whatever leaves."""

from __future__ import annotations

import itertools

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench._streaming import process_over_budget
from haversack.bench.edgemoe import _toy
from haversack.bench.edgemoe._bench import bench
from haversack.bench.edgemoe.speed import CHOSEN, FULL, buffer_kib, decode

EVICTIONS = ("intent", "printed", "frequency", "lru", "fifo", "none")
PREDICTIONS = ("paths", "gate", "none")
PLACES = (1, 3, 10, 24, 48)
PROMPT, TOKENS = 40, 40


def grid(run: Run) -> list[tuple[str, str, int]]:
    """Ways to stream; of a quick run a third, drawn."""
    ways = list(itertools.product(EVICTIONS, PREDICTIONS, PLACES))
    if run.quick:
        drawn = np.random.default_rng(run.seed).permutation(len(ways))[: len(ways) // 3]
        ways = [ways[int(index)] for index in drawn]
    return ways


@bench.measure(
    Row(
        "tokens",
        "tokens that differ from those of the same quantized model in memory: evictions by predictions by "
        "buffer sizes",
        "tokens",
        "quality",
        Bar("==", 0.0),
        judged="ours",
        quick=True,
    ),
    Row(
        "buffer-bytes",
        "most bytes of experts held, over the bytes allowed, the worst of the same runs",
        "share",
        "memory",
        Bar("<=", 1.0),
        judged="ours",
        published="expert buffers of 10 experts",
        quick=True,
    ),
    seconds=120,
    quick_seconds=15,
)
def streamed(run: Run) -> Outcomes:
    _toy.trained(run)
    from haversack.run import Engine

    path, prompt = _toy.pack(CHOSEN), _toy.prompts(1, PROMPT, run.seed)[0]
    with Engine.open(path, residency="copied", activations="f32") as engine:
        _, plain = decode(engine, prompt, TOKENS)
    place = buffer_kib() / 10
    differing, shares = 0, []
    ways = grid(run)
    for eviction, predict, places in ways:
        residency = (
            f"streamed:edgemoe,buffer_kib={round(place * places)},eviction={eviction},predict={predict}"
        )
        with Engine.open(path, residency=residency, activations="f32") as engine:
            _, tokens = decode(engine, prompt, TOKENS)
            differing += sum(one != other for one, other in zip(tokens, plain, strict=True))
            shares.append(engine.held.buffer.statistics.peak_nbytes / engine.held.budget)
    note = f"{len(ways)} ways of {len(EVICTIONS) * len(PREDICTIONS) * len(PLACES)}, {TOKENS} tokens each"
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
        published="2.1-38.6x less than all in memory",
        quick=True,
    ),
    Row(
        "bytes-a-token",
        "bytes read from storage for a token, beside f32 experts on demand",
        "bytes",
        "bytes",
        Bar("<=", 0.4),
        quick=True,
    ),
    seconds=40,
    quick_seconds=12,
)
def resident(run: Run) -> Outcomes:
    _toy.trained(run)
    from haversack.run import Engine

    path, prompt = _toy.pack(FULL), _toy.prompts(1, PROMPT, run.seed)[0]
    # Room for some of the 48 experts of 0.85 MiB.
    share, note = process_over_budget(path, prompt, TOKENS, "streamed:edgemoe", 16.0, "experts")
    per_token = {}
    for side, precision, way in (
        ("EdgeMoE", CHOSEN, f"streamed:edgemoe,buffer_kib={buffer_kib()}"),
        ("f32 on demand", FULL, "streamed:edgemoe,buffer_kib=0,eviction=none,predict=none"),
    ):
        with Engine.open(_toy.pack(precision), residency=way, activations="f32") as engine:
            decode(engine, prompt, 1)
            before = engine.held.store.bytes_read
            decode(engine, prompt[:1], TOKENS)
            per_token[side] = (engine.held.store.bytes_read - before) / TOKENS
    return {
        "process-bytes": Outcome.single(share, name="EdgeMoE", note=note),
        "bytes-a-token": Outcome.single(
            per_token["EdgeMoE"], per_token["f32 on demand"], name="EdgeMoE", against="f32 on demand"
        ),
    }


@bench.measure(
    Row(
        "real-size",
        "OLMoE-1B-7B's shape with drawn weights at 4 bits, in a third of its pack: tokens a second beside "
        "llama.cpp with mmap under the same limit",
        "tokens/s",
        "time",
    ),
    Row(
        "switch-rouge",
        "Rouge-2 of Switch-base-8 on SAMsum with each expert at its own bits",
        "Rouge-2",
        "quality",
        published="0.221 to 0.219",
    ),
    seconds=1,
)
def elsewhere(run: Run) -> Outcomes:
    raise Unavailable("the checkpoint and the memory limit of a control group are not at hand here")
