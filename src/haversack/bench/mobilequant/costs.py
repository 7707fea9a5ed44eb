"""What MobileQuant costs and saves: bit operations and bytes, time of a product, memory of learning."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.mobilequant._bench import bench
from haversack.core.memory import run_measured
from haversack.models._architecture import Architecture
from haversack.models.language import read_architecture

LENGTH = 2048
TINY_LLAMA = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
BLOCKS, SMALL_VOCABULARY, TEXT, TEXTS = 2, 1024, 512, 2
ROUNDS = 9
WORKER = "from haversack.bench.mobilequant.costs import learn_two_blocks; learn_two_blocks()"


@bench.measure(
    *[
        Row(
            f"operations-w{bits}",
            f"bit operations of W{bits}A8 over W{bits}A16 in the quantized matrices of TinyLlama",
            "bit operations a token",
            "bytes",
            Bar("==", 0.5),
            quick=True,
        )
        for bits in (8, 4)
    ],
    Row(
        "operations-all",
        f"bit operations of W8A8 over W8A16, attention over {LENGTH} tokens and its 16 bits counted",
        "bit operations a token",
        "bytes",
        quick=True,
    ),
    Row(
        "activation-nbytes",
        "bytes of activations that the quantized matrices of TinyLlama read, A8 over A16",
        "bytes a token",
        "bytes",
        Bar("==", 0.5),
        quick=True,
    ),
    Row(
        "activation-nbytes-all",
        "bytes of all rounded activations, what stays at 16 bits counted, A8 over A16",
        "bytes a token",
        "bytes",
        quick=True,
    ),
    seconds=1,
    quick_seconds=1,
)
def counted(run: Run) -> Outcomes:
    from haversack.shrink.precision._mobilequant_costs import costs

    architecture = read_architecture(TINY_LLAMA)
    found: dict[str, Outcome] = {}
    for bits in (8, 4):
        ours, wide = (costs(architecture, bits, activations, LENGTH) for activations in (8, 16))
        found[f"operations-w{bits}"] = Outcome.single(
            ours.matrix_operations, wide.matrix_operations, against=f"W{bits}A16"
        )
        if bits == 8:
            note = "scores, shares, norm inputs and residual additions at 16 bits"
            found["operations-all"] = Outcome.single(
                ours.all_operations, wide.all_operations, against="W8A16", note=note
            )
            found["activation-nbytes"] = Outcome.single(ours.matrix_nbytes, wide.matrix_nbytes, against="A16")
            found["activation-nbytes-all"] = Outcome.single(
                ours.all_nbytes, wide.all_nbytes, against="A16", note=note
            )
    return found


@bench.measure(
    *[
        Row(
            f"product-{tokens}-{kind}",
            f"time of a product 2048 x 5632, {tokens} tokens: static int8 over {kind} (CPU, not NPU)",
            "ms",
            "time",
            quick=tokens == 128,
        )
        for tokens in (1, 128)
        for kind in ("f32", "bf16", "int8-dynamic")
    ],
    seconds=40,
    quick_seconds=10,
)
def products(run: Run) -> Outcomes:
    from haversack.kernels import Matrix, matmul, pack_int8

    rng = np.random.default_rng(run.seed)
    weight = rng.standard_normal((5632, 2048)).astype(np.float32)
    codes = pack_int8(np.rint(weight * 30).clip(-127, 127).astype(np.int8), np.full(5632, 1 / 30, np.float32))
    floats = {kind: Matrix.from_array(weight, kind) for kind in ("f32", "bf16")}
    found: dict[str, Outcome] = {}
    for tokens in (128,) if run.quick else (1, 128):
        x = rng.standard_normal((tokens, 2048)).astype(np.float32)
        out = np.empty((tokens, 5632), np.float32)
        static = {"activations": "int8-static", "static_scale": 0.03, "static_zero": -3}

        def timed(call: Callable[[], object]) -> Callable[[], float]:
            def once() -> float:
                begun = time.perf_counter()
                for _ in range(8 if tokens == 1 else 1):  # noqa: B023 - called in this round
                    call()
                return (time.perf_counter() - begun) * 1e3 / (8 if tokens == 1 else 1)  # noqa: B023

            return once

        sides = {
            "int8-static": timed(lambda: matmul(x, codes, out=out, **static)),  # type: ignore[arg-type] # noqa: B023
            "int8-dynamic": timed(lambda: matmul(x, codes, activations="int8-dynamic", out=out)),  # noqa: B023
            "f32": timed(lambda: matmul(x, floats["f32"], out=out)),  # noqa: B023
            "bf16": timed(lambda: matmul(x, floats["bf16"], out=out)),  # noqa: B023
        }
        for side in sides.values():
            side()
        taken = run.interleave(sides, ROUNDS)
        for kind in ("f32", "bf16", "int8-dynamic"):
            found[f"product-{tokens}-{kind}"] = Outcome.of(taken, ours="int8-static", baseline=kind)
    return found


def two_blocks() -> Architecture:
    """Two blocks of TinyLlama's shape under a small vocabulary."""
    return read_architecture(TINY_LLAMA | {"num_hidden_layers": BLOCKS, "vocab_size": SMALL_VOCABULARY})


def learn_two_blocks() -> None:
    """Learn on random weights of that shape; run in a process of its own, whose memory is measured."""
    import torch

    from haversack.shrink.precision.mobilequant_torch import Recipe, quantize

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rng = np.random.default_rng(0)
    architecture = two_blocks()
    tensors = {}
    for name, shape in architecture.tensors().items():
        tensors[name] = rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
        if len(shape) == 1:
            tensors[name] = np.ones(shape, np.float32)
    texts = rng.integers(0, SMALL_VOCABULARY, (TEXTS, TEXT)).astype(np.int32)
    quantize(architecture, tensors, texts, Recipe(epochs=1), copied=False)


@bench.measure(
    Row(
        "peak-two-blocks",
        f"peak memory of learning two blocks of TinyLlama's shape on texts of {TEXT}, over the plan",
        "MiB",
        "memory",
        Bar("<=", 1.0),
        quick=True,
    ),
    seconds=90,
    quick_seconds=45,
)
def peak(run: Run) -> Outcomes:
    import importlib.util

    from haversack.shrink.precision._mobilequant_costs import planned_peak

    if importlib.util.find_spec("torch") is None:
        raise Unavailable("torch is not installed; run: pip install 'haversack[workshop]'")
    planned = planned_peak(two_blocks(), TEXTS * TEXT, TEXT).total_mib
    whole = planned_peak(read_architecture(TINY_LLAMA)).total_bytes / 2**30
    done = run_measured([sys.executable, "-c", WORKER], timeout=600)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip()).splitlines()[-1])
    note = f"extrapolated by the plan, not measured: all 22 blocks, 32,768 tokens, {whole:.1f} GiB"
    return {"peak-two-blocks": Outcome.single(done.peak_mib, planned, against="planned", note=note)}
