"""What nesting bits costs: planes read back bit for bit, bytes beside copies, each level's error, the time of
products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Side
from haversack.bench.d2moe import _toy
from haversack.bench.d2moe._bench import bench
from haversack.bench.edgemoe import _toy as edgemoe

F32 = NDArray[np.float32]
BITS = (2, 3, 4)
LAYERS, QUICK_LAYERS = (0, 2, 5), (2,)
CALLS = 200


def decoded(data: Any, rows: int, columns: int, group: int, bits: int, base: bool) -> F32:
    """A plane's numbers f32 [rows, columns], read by the format's description alone (run/forms/nested.py)."""
    out = np.zeros((-(-rows // 16) * 16, columns), np.float32)
    at = 0
    for block in range(0, len(out), 16):
        for start in range(0, columns, group):
            count = min(group, columns - start)
            codes = np.zeros((16, count), np.float32)
            for bit in range(bits):
                plain = np.unpackbits(data[at : at + 2 * count], bitorder="little").reshape(count, 16)
                codes += plain.T.astype(np.float32) * 2**bit
                at += 2 * count
            scales = np.frombuffer(data[at : at + 32].tobytes(), "<f2").astype(np.float32)[:, None]
            at += 32
            zeros = np.full((1, 1), 0.5, np.float32)
            if base:
                zeros = np.frombuffer(data[at : at + 32].tobytes(), "<f2").astype(np.float32)[:, None]
                at += 32
            found = (codes - zeros) * scales if base else np.where(codes > 0, scales, -scales)
            out[block : block + 16, start : start + count] = found
    return out[:rows]


@bench.measure(
    Row(
        "nested",
        "numbers of the levels that are not what the stored planes say, or whose narrower level is not the "
        "first planes of it",
        "numbers",
        "quality",
        Bar("==", 0.0),
        judged="ours",
        quick=True,
    ),
    Row(
        "nested-bytes",
        "bytes of experts in nested bits (2, 3, 4) beside a copy for each width",
        "bytes",
        "bytes",
        Bar("<=", 0.47),
        published="9.62 GB of copies (LLaMA-MoE), 3.81 GB at 4 bits alone",
        quick=True,
    ),
    Row("nested-bits", "bits a weight of nested experts, scales included", "bits", "bytes"),
    seconds=240,
    quick_seconds=10,
)
def stored(run: Run) -> Outcomes:
    _toy.trained(run)
    from haversack.core.pack import Pack
    from haversack.run._weights import bind
    from haversack.run.forms.nested import names_of

    pack, copies = Pack.open(_toy.pack(_toy.NESTED)), Pack.open(_toy.pack(_toy.COPIES))
    names = list(pack.forms)
    if run.quick:
        names = [names[int(i)] for i in np.random.default_rng(run.seed).permutation(len(names))[:12]]
    wrong = 0
    for name in names:
        entry, bound = pack.forms[name], bind(pack, [name])[name]
        rows, columns = entry["shape"]
        total = np.zeros((rows, columns), np.float32)
        for level, part in enumerate(names_of(entry)):
            data = np.frombuffer(pack.bytes(f"{name}.{part}"), np.uint8)
            bits, base = (entry["first"], True) if level == 0 else (1, False)
            total = total + decoded(data, rows, columns, entry["group"], bits, base)
            wrong += int((bound.dense(level) != total).sum())
    sizes = [
        sum(entry.nbytes for name, entry in one.tensors.items() if name.rpartition(".")[0] in one.forms)
        for one in (pack, copies)
    ]
    weights = sum(int(np.prod(form["shape"])) for form in pack.forms.values())
    note = f"{len(names)} of {len(pack.forms)} matrices"
    return {
        "nested": Outcome.single(wrong, name="nested", note=note),
        "nested-bytes": Outcome.single(sizes[0], sizes[1], name="nested", against="copies"),
        "nested-bits": Outcome.single(
            8 * sizes[0] / weights, 8 * sizes[1] / weights, name="nested", against="copies"
        ),
    }


def expert_inputs(layer: int) -> tuple[dict[int, F32], dict[int, F32]]:
    """What calibration text sends into each expert of a layer, and the experts' gate matrices."""
    from haversack.run import Engine

    seen: dict[int, list[F32]] = {}
    weights: dict[int, F32] = {}

    def observe(routing: Any) -> None:
        if routing.block == layer:
            for expert in range(_toy.EXPERTS):
                rows = (routing.experts == expert).any(axis=1)
                seen.setdefault(expert, []).append(routing.x[rows].copy())

    with Engine.open(_toy.folder(), residency="copied") as engine:
        engine.observe(observe)
        for text in edgemoe.calibration():
            engine.step(text, cache=engine.cache(len(text)), want="none")
        with engine.held.weights(layer) as held:
            from haversack.kernels import unpack

            for expert in range(_toy.EXPERTS):
                name = f"model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight"
                weights[expert] = unpack(held[name])
    return {expert: np.concatenate(parts) for expert, parts in seen.items()}, weights


def relative(x: F32, weight: F32, found: F32) -> float:
    """Error of the outputs over their size."""
    exact = x @ weight.T
    return float(np.linalg.norm(x @ found.T - exact) / np.linalg.norm(exact))


@bench.measure(
    Row(
        "error-falls",
        "error of a level's outputs over that of the level before, the largest of all experts and levels",
        "share",
        "quality",
        Bar("<=", 0.999),
        judged="ours",
        published="perplexity 20.95, 15.10 and 14.72 at 2, 3 and 4 bits (LLaMA-MoE)",
        quick=True,
    ),
    Row(
        "error-top",
        "error of the widest level's outputs beside 4 bits by GPTQ alone",
        "share",
        "quality",
        Bar("<=", 1.5),
        quick=True,
    ),
    Row(
        "error-published",
        "the same where the narrowest level's error is spread, as published",
        "share",
        "quality",
    ),
    seconds=120,
    quick_seconds=15,
)
def errors(run: Run) -> Outcomes:
    _toy.trained(run)
    from haversack.shrink.precision.d2moe import mwq_quantize
    from haversack.shrink.precision.gptq import Feedback, gptq

    falls: list[float] = []
    ours: list[float] = []
    spread: list[float] = []
    alone: list[float] = []
    for layer in QUICK_LAYERS if run.quick else LAYERS:
        inputs, weights = expert_inputs(layer)
        for expert, weight in weights.items():
            x = inputs[expert]
            if len(x) < 2 * weight.shape[1]:
                continue  # too few tokens to measure an error on others than it was fitted to
            seen, later = x[::2], x[1::2]
            levels = [
                relative(later, weight, mwq_quantize(weight, seen, BITS, pad=True).dequant(bits))
                for bits in BITS
            ]
            falls += [after / before for before, after in pairwise(levels)]
            ours.append(levels[-1])
            bottom = mwq_quantize(weight, seen, BITS, compensate="bottom", pad=True)
            spread.append(relative(later, weight, bottom.dequant(BITS[-1])))
            wide = seen.astype(np.float64)
            feedback = Feedback.of(wide.T @ wide / len(wide), 0.01, "given")
            codes, scales = gptq(weight, feedback, 4, 128, "searched")
            plain = np.repeat(scales, 128, axis=1)[:, : weight.shape[1]] * codes
            alone.append(relative(later, weight, plain))
    note = f"gate matrices of {len(ours)} experts, tokens that were not fitted to"
    base = Side("GPTQ, 4 bits", tuple(alone))
    return {
        "error-falls": Outcome.single(max(falls), name="nested", note=note),
        "error-top": Outcome(Side("nested", tuple(ours)), base, note),
        "error-published": Outcome(Side("narrowest spread", tuple(spread)), base, note),
    }


@bench.measure(
    *(
        Row(
            f"product-{bits}-{tokens}",
            f"time of a product of {tokens} tokens with {bits} nested bits, beside the int4 kernel with f32 "
            "activations",
            "us",
            "time",
            published="dequantization 18.6 % (4 texts) to 5.3 % (32) of a step" if bits == 4 else None,
        )
        for bits in (2, 4)
        for tokens in (1, 16)
    ),
    seconds=15,
    watches=("kernels/nested.py", "native/nested.cpp", "native/nested.h", "bench/d2moe/planes.py"),
)
def products(run: Run) -> Outcomes:
    from haversack.kernels import matmul, pack_int4, set_threads, threads
    from haversack.shrink.precision.d2moe import mwq_quantize

    rng, before = np.random.default_rng(run.seed), threads()
    rows, columns = edgemoe.INNER, edgemoe.WIDTH
    nested = mwq_quantize(rng.standard_normal((rows, columns)).astype(np.float32), pad=True)
    codes = rng.integers(-8, 8, (rows, columns)).astype(np.int8)
    plain = pack_int4(codes, np.ones((rows, -(-columns // 128)), np.float32), 128)
    found: dict[str, Outcome] = {}
    set_threads(1)
    try:
        for tokens in (1, 16):
            x = rng.standard_normal((tokens, columns)).astype(np.float32)
            out = np.zeros((tokens, rows), np.float32)

            def of(bits: int, x: F32 = x, out: F32 = out) -> float:
                began = perf_counter()
                for _ in range(CALLS):
                    for plane in nested.planes[: bits - 1]:
                        plane.add(x, out)
                return 1e6 * (perf_counter() - began) / CALLS

            def int4(x: F32 = x, out: F32 = out) -> float:
                began = perf_counter()
                for _ in range(CALLS):
                    matmul(x, plain, out=out)
                return 1e6 * (perf_counter() - began) / CALLS

            sides: dict[str, Callable[[], float]] = {"int4": int4, "2": partial(of, 2), "4": partial(of, 4)}
            taken = run.interleave(sides, 3 * MIN_PAIRS)
            for bits in ("2", "4"):
                found[f"product-{bits}-{tokens}"] = Outcome.of(taken, ours=bits, baseline="int4")
    finally:
        set_threads(before)
    return found
