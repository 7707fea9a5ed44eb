"""Three bits a weight: the speed of its products beside four, and what GPTQ and SpQR keep of `code` at it;
QUIK beside GPTQ at 8 bits.

Products are of one token, int8 activations, on one thread, and timed in that thread's own processor time,
over matrices that together exceed the caches. Losses are as in quality.py; all methods are calibrated on the
same 64 k tokens, and round-to-nearest searches its scales like the others.
"""

from __future__ import annotations

import time
from functools import partial

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.engine._bench import SHRINK_FILES, bench
from haversack.bench.engine._models import code_folder, code_pack
from haversack.bench.engine.quality import evaluation_text, loss

GROUP = 64
CALLS = 24
NEAREST = "round-to-nearest:bits=3,group=32,scales=searched"
GPTQ = "gptq:bits=3,group=32,scales=searched"
SPQR = "spqr:bits=3,group=32"
EIGHT, QUIK = "gptq:bits=8", "quik:bits=8"


@bench.measure(
    Row(
        "int3-decode",
        f"a token's matrix products at 3 bits in groups of {GROUP} take less time than at 4 bits",
        "ms",
        "time",
        Bar("<=", 0.9),
        quick=True,
    ),
    seconds=20,
    quick_seconds=8,
)
def decode(run: Run) -> Outcomes:
    import numpy as np

    from haversack.kernels import matmul, set_threads, threads
    from haversack.kernels._timing import COLUMNS, ROWS, matrices_of

    held = {f"int{bits}": matrices_of(f"int{bits}:{GROUP}", 96 << 20) for bits in (4, 3)}
    x = np.random.default_rng(run.seed).standard_normal((1, COLUMNS), np.float32)
    out = np.empty((1, ROWS), np.float32)

    def spent(kind: str) -> float:
        start = time.thread_time()
        for matrix in held[kind][:CALLS]:
            matmul(x, matrix, activations="int8-dynamic", out=out)
        return 1e3 * (time.thread_time() - start) / min(CALLS, len(held[kind]))

    before = threads()
    set_threads(1)
    try:
        taken = run.interleave({kind: partial(spent, kind) for kind in held}, 15)
    finally:
        set_threads(before)
    note = f"a matrix of {COLUMNS} x {ROWS}, one thread, its processor time"
    return {"int3-decode": Outcome.of(taken, ours="int3", baseline="int4", note=note)}


@bench.measure(
    Row(
        "gptq3-loss",
        "at 3 bits in groups of 32, GPTQ's loss increase on `code` is at most half of round-to-nearest's",
        "bits/byte more than f32",
        "quality",
        Bar("<=", 0.5),
    ),
    Row(
        "spqr-loss",
        "SpQR's loss increase at 3 bits is at most 60 % of GPTQ's in the same groups",
        "bits/byte more than f32",
        "quality",
        Bar("<=", 0.6),
        published="near-lossless below 4.75 bits a weight (Dettmers et al., 2023)",
    ),
    Row(
        "spqr-bytes",
        "what SpQR's outliers add to a pack of `code`",
        "bytes",
        "bytes",
    ),
    Row(
        "quik-loss",
        "with int8 activations QUIK at 8 bits loses at most as much of `code` as GPTQ at 8 bits",
        "bits/byte",
        "quality",
        Bar("<=", 1.0),
    ),
    seconds=500,
    watches=SHRINK_FILES,
)
def outliers(run: Run) -> Outcomes:
    from haversack.core.pack import Pack

    text = evaluation_text(run)
    plain = loss(code_folder(), text)
    lost = {}
    for choice in (NEAREST, GPTQ, SPQR):
        run.say(f"loss of {choice}")
        lost[choice] = loss(code_pack(choice), text) - plain
    dynamic = {}
    for choice in (EIGHT, QUIK):
        run.say(f"loss of {choice}")
        dynamic[choice] = loss(code_pack(choice), text, "int8-dynamic")
    note = f"{len(text.tokens)} held-out tokens; f32 loss {plain:.4f}"
    sizes = [float(Pack.open(code_pack(choice)).nbytes) for choice in (SPQR, GPTQ)]
    return {
        "gptq3-loss": Outcome.single(
            lost[GPTQ], lost[NEAREST], name="GPTQ", against="round-to-nearest", note=note
        ),
        "spqr-loss": Outcome.single(lost[SPQR], lost[GPTQ], name="SpQR", against="GPTQ", note=note),
        "spqr-bytes": Outcome.single(*sizes, name="SpQR", against="GPTQ"),
        "quik-loss": Outcome.single(dynamic[QUIK], dynamic[EIGHT], name="QUIK", against="GPTQ", note=note),
    }
