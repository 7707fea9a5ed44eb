"""What a prompt costs, dense and sparse, on the recall model: wall time of a prefill of 8,192 tokens, the
part of it that is attention (choice and borders included), the length below which dense attention is faster,
and the bytes that attention takes when nothing is looped over."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.dhsa._bench import bench
from haversack.bench.dhsa._models import TEST, answered, documents, recall_folder, sparse

LENGTH, BUDGET = 8192, 1280
LENGTHS = (512, 1024, 2048, 4096, 8192)
QUERIES, LEAST = 64, 80
"""Queries of a block, and what these always see."""
TEXTS, QUICK_TEXTS, ROUNDS = 6, 1, 3
BYTES_LENGTH, BYTES_BUDGET, BYTES_BLOCK = 2048, 512, 64
APART = 4


def sparse_prompt(run: Run, budget: int) -> str:
    """DHSA as prompts are read here."""
    return sparse("dhsa", budget, run.say, query_block=QUERIES, apart=APART)


ROWS = (
    Row(
        "prefill-8192",
        "a prompt of 8,192 tokens is read in at most 0.8 of dense attention's time",
        "s",
        "time",
        Bar("<=", 0.8),
        published="1.65 s to 1.19 s at 8k (Gemma-2-2B, one GPU of 24 GB); 20 to 60 % less",
        quick=True,
    ),
    Row(
        "attention-8192",
        "its attention, borders and choices included, takes at most half of dense attention's time",
        "s",
        "time",
        Bar("<=", 0.5),
    ),
    Row(
        "recall-8192",
        "and its questions are answered at least 0.97 times as often",
        "share of questions",
        "quality",
        Bar(">=", 0.97),
        quick=True,
    ),
)
BREAK_EVEN = Row("break-even", "the prompt length below which dense attention is faster", "tokens", "time")
PEAK = Row(
    "attention-bytes",
    "peak bytes of attention without loops are at most 0.65 of dense attention's, both in numpy",
    "MiB",
    "memory",
    Bar("<=", 0.65),
    published="10.72 GB to 6.91 GB at 8k",
    quick=True,
)
GPU = (
    Row("gpu-8k", "8k tokens on a GPU of 24 GB", "s", "time", published="dense 1.65 s, DHSA 1.19 s"),
    Row("gpu-16k", "16k tokens there", "s", "time", published="dense out of memory, DHSA 2.18 s and 9.69 GB"),
    Row(
        "gpu-32k", "32k tokens there", "s", "time", published="dense out of memory, DHSA 4.51 s and 16.99 GB"
    ),
    Row(
        "gpu-128k",
        "128k tokens beside FlashAttention-2, 100k on an 8B model in 4 bits",
        "s",
        "time",
        published="up to 10 times as fast (later version)",
    ),
)


class Timed:
    """An attention method that adds up the seconds it takes."""

    def __init__(self, method: Any) -> None:
        self.method, self.seconds = method, 0.0

    def attend(self, *given: Any) -> Any:
        begun = perf_counter()
        out = self.method.attend(*given)
        self.seconds += perf_counter() - begun
        return out


def reading(engine: Any, tokens: Any) -> Callable[[], float]:
    """A function that reads `tokens` into an empty cache and returns its seconds."""
    cache = engine.cache(len(tokens))

    def once() -> float:
        cache.truncate(0)
        begun = perf_counter()
        engine.slots.prefill.prefill(engine, tokens, cache)
        return perf_counter() - begun

    return once


def attending(engine: Any, tokens: Any) -> Callable[[], float]:
    """The same; returns the seconds of attention, borders included."""
    from haversack.run._forward import Forward

    timed = Timed(engine.slots.attention)
    engine.forward = Forward(engine.architecture, activations=engine.activations, attention=timed)
    read = reading(engine, tokens)

    def once() -> float:
        timed.seconds = 0.0
        read()
        borders = engine.reader.tally.border_s if engine.reader is not None else 0.0
        return timed.seconds + float(borders)

    return once


@bench.measure(*ROWS, seconds=120, quick_seconds=35)
def prompt(run: Run) -> Outcomes:
    from haversack.run._engine import Engine

    attention = sparse_prompt(run, BUDGET)
    texts = documents(TEST, QUICK_TEXTS if run.quick else TEXTS, LENGTH, run.seed)
    tokens = texts[0].tokens
    found: dict[str, Outcome | Unavailable] = {}
    with (
        Engine.open(recall_folder(run.say)) as dense,
        Engine.open(recall_folder(run.say), attention=attention) as ours,
    ):
        sides = {"dense": reading(dense, tokens), "DHSA": reading(ours, tokens)}
        for side in sides.values():
            side()
        run.say("a prompt of 8,192 tokens")
        taken = run.interleave(sides)
        told = f"budget {BUDGET}; {ours.reader.tally.words()}"
        found["prefill-8192"] = Outcome.of(taken, ours="DHSA", baseline="dense", note=told)
        if not run.quick:
            parts = run.interleave({"dense": attending(dense, tokens), "DHSA": attending(ours, tokens)})
            found["attention-8192"] = Outcome.of(parts, ours="DHSA", baseline="dense", note=told)
    run.say("questions at 8,192 tokens")
    found["recall-8192"] = Outcome.single(
        answered(attention, texts, run.say), answered("dense", texts, run.say), name="DHSA", against="dense"
    )
    return found


@bench.measure(BREAK_EVEN, seconds=60)
def break_even(run: Run) -> Outcomes:
    from haversack.run._engine import Engine

    ratios: dict[int, float] = {}
    for length in LENGTHS:
        tokens = documents(TEST, 1, length, run.seed)[0].tokens
        attention = sparse_prompt(run, max(length * BUDGET // LENGTH, LEAST))
        with (
            Engine.open(recall_folder(run.say)) as dense,
            Engine.open(recall_folder(run.say), attention=attention) as ours,
        ):
            sides = {"dense": reading(dense, tokens), "DHSA": reading(ours, tokens)}
            for side in sides.values():
                side()
            taken = run.interleave(sides, ROUNDS)
        pairs = zip(taken["DHSA"], taken["dense"], strict=True)
        ratios[length] = float(np.median([a / b for a, b in pairs]))
    said = ", ".join(f"{ratio:.2f} at {length:,}" for length, ratio in ratios.items())
    note = f"time over dense attention's with {BUDGET / LENGTH:.0%} of the keys: {said}"
    crossing = crossed(ratios)
    if crossing is None:
        return {"break-even": Unavailable(f"dense attention is faster at every length; {note}")}
    return {"break-even": Outcome.single(crossing, name="DHSA", note=note)}


def crossed(ratios: dict[int, float]) -> float | None:
    """The length from which on the ratio stays at 1 or below, between two of them by the line through both in
    log length; None where the last is above."""
    lengths = sorted(ratios)
    if ratios[lengths[-1]] > 1:
        return None
    for short, long in reversed(list(pairwise(lengths))):
        if ratios[short] > 1:
            share = (ratios[short] - 1) / (ratios[short] - ratios[long])
            return float(short * (long / short) ** share)
    return float(lengths[0])


def dense_bytes(q: Any, k: Any, v: Any) -> int:
    """Peak bytes of softmax(q k^T) v over the whole text at once: q [heads, n, d], k and v [n, d]."""
    import tracemalloc

    n = len(k)
    tracemalloc.start()
    softmax_of(q @ k.T, np.arange(n)[:, None] >= np.arange(n)[None]) @ v
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def sparse_bytes(q: Any, k: Any, v: Any, entries: Any) -> int:
    """The same over entries i64 [blocks, budget] of each block of queries, all blocks at once."""
    import tracemalloc

    heads, n, width = q.shape
    blocks = len(entries)
    tracemalloc.start()
    queries = q.reshape(heads, blocks, n // blocks, width)
    seen = np.arange(n).reshape(blocks, -1)[:, :, None] >= entries[:, None]
    softmax_of(queries @ k[entries].transpose(0, 2, 1), seen) @ v[entries]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def softmax_of(scores: Any, seen: Any) -> Any:
    """The shares of scores [heads, ..., queries, keys] where `seen`, in place."""
    scores[:, ~seen] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


@bench.measure(PEAK, seconds=10, quick_seconds=5)
def peak_bytes(run: Run) -> Outcomes:
    from haversack.kernels import best_keys

    rng = np.random.default_rng(run.seed)
    n, size, budget = BYTES_LENGTH, BYTES_BLOCK, BYTES_BUDGET
    q = rng.standard_normal((4, n, 32)).astype(np.float32)
    k, v = rng.standard_normal((2, n, 32)).astype(np.float32)
    entries = np.full((n // size, budget), n, np.int64)
    borders, bounds = np.arange(0, n + 1, 16), np.arange(0, n + 1, size)
    scores = rng.standard_normal((n // size, 1, len(borders) - 1)).astype(np.float32)
    offsets, chosen = best_keys(scores, borders, 0, bounds, budget, sinks=16, local=64)
    for block in range(n // size):
        first, end = block * size, (block + 1) * size
        before = chosen[0, offsets[block] : offsets[block + 1]]
        own = np.concatenate([before, np.arange(first, end)])
        entries[block, : len(own)] = own
        entries[block, len(own) :] = n - 1  # later than every query: masked
    sparse_peak, dense_peak = sparse_bytes(q, k, v, entries), dense_bytes(q, k, v)
    note = f"{n:,} tokens, 4 heads of 32, budget {budget}, {size} queries a block; the kernels tile both"
    return {
        "attention-bytes": Outcome.single(
            sparse_peak / 2**20, dense_peak / 2**20, name="DHSA", against="dense", note=note
        )
    }


@bench.measure(*GPU, seconds=1, quick_seconds=1)
def on_gpus(run: Run) -> Outcomes:
    reason = Unavailable("published for Gemma-2-2B and larger models on GPUs; this engine runs on processors")
    return {row.id: reason for row in GPU}
