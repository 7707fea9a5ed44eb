"""That the arithmetic is right: native kernels beside their numpy twins, packed weights beside the numbers
they stand for, whole models beside recordings of the reference implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from haversack.bench._harness import Run
from haversack.bench._native import NATIVE_FILES
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.engine._bench import SHRINK_FILES, bench

Array = npt.NDArray[np.float32]
Pair = tuple[str, Callable[[], Array], Callable[[], Array]]
KERNEL_FILES = ("kernels/*.py", *NATIVE_FILES, "bench/engine/exactness.py")


def _numbers(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, np.float32)


def _products(rng: np.random.Generator) -> Iterator[Pair]:
    """Every kind of matrix with each activation type it takes, at odd sizes."""
    from haversack.kernels import Matrix, matmul, pack_int4, pack_int8
    from haversack.kernels.products import matmul_twin

    for n, rows, columns in ((1, 48, 96), (5, 33, 160), (9, 257, 384)):
        x = _numbers(rng, n, columns)
        weights = _numbers(rng, rows, columns)
        group = 32 if columns % 64 else 64
        fours = rng.integers(-8, 8, (rows, columns)).astype(np.int8)
        eights = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
        scales = rng.random((rows, -(-columns // group)), np.float32) + np.float32(0.5)
        matrices = {
            "f32": Matrix.from_array(weights),
            "f16": Matrix.from_array(weights.astype(np.float16)),
            "int8": pack_int8(eights, scales[:, 0].copy()),
            "int4": pack_int4(fours, scales, group),
        }
        for kind, matrix in matrices.items():
            for activations in ("f32", "int8-dynamic") if kind in ("int8", "int4") else ("f32",):
                yield (
                    f"matmul {kind} {activations} {n}x{rows}x{columns}",
                    lambda m=matrix, a=activations, x=x: matmul(x, m, activations=a),  # type: ignore[misc]
                    lambda m=matrix, a=activations, x=x: matmul_twin(x, m, a),  # type: ignore[misc]
                )


def _small_operations(rng: np.random.Generator) -> Iterator[Pair]:
    """Norms, rotations, gates and softmax."""
    from haversack import kernels
    from haversack.kernels import gates, norms, probabilities, rotary

    x, up = _numbers(rng, 7, 388), _numbers(rng, 7, 388)
    weight, bias = _numbers(rng, 388), _numbers(rng, 388)
    yield (
        "rms_norm",
        lambda: kernels.rms_norm(x, weight, 1e-5, offset=1.0),
        lambda: norms.rms_norm_twin(x, weight, 1e-5, 1.0),
    )
    yield (
        "layer_norm",
        lambda: kernels.layer_norm(x, weight, bias, 1e-5),
        lambda: norms.layer_norm_twin(x, weight, bias, 1e-5),
    )
    yield "softmax", lambda: kernels.softmax(x), lambda: probabilities.softmax_twin(x)
    for kind in ("silu", "gelu", "gelu-tanh", "relu"):
        yield (
            f"gate {kind}",
            lambda k=kind: kernels.gate(x, up, k),  # type: ignore[misc]
            lambda k=kind: gates.gate_twin(x, up, k),  # type: ignore[misc]
        )
    yield "softcap", lambda: kernels.softcap(x, 2.5), lambda: gates.softcap_twin(x, 2.5)
    heads = _numbers(rng, 7, 6, 64)
    frequencies = 1.0 / 10000 ** (np.arange(32) / 32)
    cos, sin = rotary.rope_table_twin(np.arange(7, dtype=np.int32), frequencies)
    for style in ("half", "interleaved"):

        def turned(style: str = style) -> Array:
            copy = heads.copy()
            kernels.rope(copy, cos, sin, style)
            return copy

        yield f"rope {style}", turned, lambda s=style: rotary.rope_twin(heads, cos, sin, s)  # type: ignore[misc]


def _attentions(rng: np.random.Generator) -> Iterator[Pair]:
    """Attention over each kind of cache, with a window and with a tree."""
    from haversack import kernels
    from haversack.kernels import CacheLayer, Visible
    from haversack.kernels.attend import attention_twin

    n, held = 5, 70
    q = _numbers(rng, n, 6, 64)
    tree = np.tri(n, dtype=bool)
    tree[3, 1:3] = tree[4, 2] = False
    starts = np.asarray([0, 3, 20, 40, 66])
    for kind in ("f32", "f16", "int8"):
        layer = CacheLayer.empty(2, 96, 64, kind)
        kernels.cache_write(layer, 0, _numbers(rng, held + n, 2, 64), _numbers(rng, held + n, 2, 64))
        for name, visible in (
            ("all", Visible(held)),
            ("window", Visible(held, starts)),
            ("tree", Visible(held, None, tree)),
        ):
            yield (
                f"attention {kind} {name}",
                lambda c=layer, v=visible: kernels.attention(q, c, v, 0.125),  # type: ignore[misc]
                lambda c=layer, v=visible: attention_twin(q, c, v, 0.125),  # type: ignore[misc]
            )


@bench.measure(
    Row(
        "native-twin",
        "native kernels equal their numpy twins: largest difference over the largest output, of all kernels",
        "relative",
        "quality",
        Bar("<=", 1e-5),
        judged="ours",
        quick=True,
    ),
    seconds=10,
    quick_seconds=5,
    watches=KERNEL_FILES,
)
def native_twin(run: Run) -> Outcomes:
    rng = np.random.default_rng(run.seed)
    worst, where, count = 0.0, "", 0
    for family in (_products, _small_operations, _attentions):
        for name, native, twin in family(rng):
            ours, definition = native(), twin()
            error = float(np.abs(ours - definition).max() / max(float(np.abs(definition).max()), 1e-30))
            count += 1
            if not error <= worst:
                worst, where = error, name
    from haversack.kernels import isa

    return {"native-twin": Outcome.single(worst, name=isa(), note=f"{count} cases; worst: {where}")}


@bench.measure(
    *[
        Row(
            f"dequantized-{kind}",
            f"with f32 activations, {kind} weights compute what their numbers in f32 compute: "
            "largest difference over the largest logit",
            "relative",
            "quality",
            Bar("<=", 1e-4),
            judged="ours",
        )
        for kind in ("int8", "int4")
    ],
    seconds=40,
    watches=SHRINK_FILES,
)
def dequantized(run: Run) -> Outcomes:
    from haversack.bench.engine._models import code_pack, unpacked
    from haversack.bench.engine.quality import engine, evaluation_text

    text = evaluation_text(run)
    tokens = np.ascontiguousarray(text.tokens[:512], np.int32)
    positions = np.arange(len(tokens), dtype=np.int32)
    found = {}
    for kind, bits in (("int8", 8), ("int4", 4)):
        pack = code_pack(f"round-to-nearest:bits={bits}")
        logits = []
        for path in (pack, unpacked(pack)):
            one = engine(path)
            logits.append(one.step(tokens, positions, None, one.cache(len(tokens)), want="all")[0])
        assert logits[0] is not None and logits[1] is not None
        error = float(np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max())
        found[f"dequantized-{kind}"] = Outcome.single(error, name=kind, note="512 tokens of `code`")
    return found
