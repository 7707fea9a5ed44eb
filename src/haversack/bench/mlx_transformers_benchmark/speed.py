"""Rows of speed at the place people ask for: BERT-base, a text of 128 tokens, two threads; and what int8
costs on the real MiniLM."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.mlx_transformers_benchmark._backends import Batch, backend, read_checkpoint
from haversack.bench.mlx_transformers_benchmark._bench import bench
from haversack.bench.mlx_transformers_benchmark._grid import Ready
from haversack.bench.mlx_transformers_benchmark._models import bert_base, minilm, sentences

TOKENS, THREADS, ROUNDS = 128, 2, 15
PLACE = "BERT-base, 128 tokens, batch 1, two threads"
SIDES = ("torch-eager", "onnxruntime", "onnxruntime-int8", "haversack", "haversack-int8")


def one_text(vocabulary: int, tokens: int, seed: int) -> Batch:
    """A batch of one text of random tokens."""
    ids = np.random.default_rng(seed).integers(1000, vocabulary, (1, tokens))
    ones = np.ones_like(ids)
    return Batch(ids, ones, np.zeros_like(ids), np.arange(tokens)[None])


@bench.measure(
    Row(
        "f32",
        f"{PLACE}: f32 is not slower than PyTorch eager (aim: 1.3x)",
        "ms",
        "time",
        Bar("<=", 1.0),
        quick=True,
    ),
    Row("f32-onnxruntime", f"{PLACE}: f32 beside ONNX Runtime", "ms", "time"),
    Row(
        "int8",
        f"{PLACE}: int8-dynamic at least 1.6x as fast as PyTorch eager",
        "ms",
        "time",
        Bar("<=", 1 / 1.6),
    ),
    Row(
        "int8-onnxruntime",
        f"{PLACE}: int8-dynamic at least 0.9x as fast as ONNX Runtime's dynamic int8",
        "ms",
        "time",
        Bar("<=", 1 / 0.9),
    ),
    Row(
        "optimised-path",
        f"{PLACE}: the better of ONNX Runtime and our f32 is at least 1.1x as fast as PyTorch eager",
        "ms",
        "time",
        Bar("<=", 1 / 1.1),
    ),
    seconds=120,
    quick_seconds=30,
)
def speed(run: Run) -> Outcomes:
    checkpoint = read_checkpoint(bert_base())
    batch = one_text(checkpoint.architecture.vocabulary, TOKENS, run.seed)
    names = ("torch-eager", "haversack") if run.quick else SIDES
    ready: dict[str, Ready] = {}
    missing: dict[str, str] = {}
    for name in names:
        one = backend(name)
        reason = one.unavailable()
        if reason is None:
            ready[name] = Ready(one, one.load(checkpoint, THREADS))
        else:
            missing[name] = reason
    for side in ready.values():
        for _ in range(3):
            side.call_ms(batch)
    rounds = MIN_PAIRS if run.quick else ROUNDS
    sides: dict[str, Any] = {name: partial(side.call_ms, batch) for name, side in ready.items()}
    taken = run.interleave(sides, rounds)

    def pair(ours: str, baseline: str) -> Outcome | Unavailable:
        for name in (ours, baseline):
            if name not in taken:
                return Unavailable(missing.get(name, f"{name} is not part of a quick run"))
        return Outcome.of(taken, ours=ours, baseline=baseline)

    found = {
        "f32": pair("haversack", "torch-eager"),
        "f32-onnxruntime": pair("haversack", "onnxruntime"),
        "int8": pair("haversack-int8", "torch-eager"),
        "int8-onnxruntime": pair("haversack-int8", "onnxruntime-int8"),
    }
    paths = [name for name in ("onnxruntime", "haversack") if name in taken]
    best = min(paths, key=lambda name: statistics.median(taken[name]))
    found["optimised-path"] = pair(best, "torch-eager")
    return found


@bench.measure(
    Row(
        "int8-cosine",
        "all-MiniLM-L6-v2: mean cosine of int8-dynamic sentence vectors to f32, beside ONNX Runtime's int8",
        "cosine",
        "quality",
        Bar(">=", 0.99),
        judged="ours",
    ),
    Row(
        "int8-cosine-least",
        "all-MiniLM-L6-v2: the least of those cosines",
        "cosine",
        "quality",
        Bar(">=", 0.99),
        judged="ours",
    ),
    seconds=60,
)
def quality(run: Run) -> Outcomes:
    from haversack.bench.mlx_transformers_benchmark._haversack import int8_pack
    from haversack.run._encoder import Encoder
    from haversack.run._pooling import normalized, pool

    folder = minilm()
    texts = sentences(64)
    with Encoder.open(folder) as encoder, Encoder.open(int8_pack(folder)) as small:
        tokens = encoder.tokens(texts)
        plain, ours = encoder.embed_tokens(tokens), small.embed_tokens(tokens)
    cosines = (plain * ours).sum(axis=1)
    runtime = backend("onnxruntime-int8")
    theirs = None
    if runtime.unavailable() is None:
        loaded = runtime.load(read_checkpoint(folder), THREADS)
        rows = []
        for text in tokens:
            ids = text.ids.astype(np.int64)[None]
            positions = text.positions.astype(np.int64)[None]
            batch = Batch(ids, np.ones_like(ids), np.zeros_like(ids), positions)
            rows.append(pool(loaded.array(loaded.run(batch))[0], ("mean",)))
        theirs = (normalized(np.stack(rows)) * plain).sum(axis=1)
    note = f"{len(texts)} sentences"
    against = "onnxruntime-int8"
    return {
        "int8-cosine": Outcome.single(
            float(cosines.mean()),
            None if theirs is None else float(theirs.mean()),
            against=against,
            note=note,
        ),
        "int8-cosine-least": Outcome.single(
            float(cosines.min()), None if theirs is None else float(theirs.min()), against=against, note=note
        ),
    }
