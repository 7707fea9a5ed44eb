"""Run in a process of its own, one for each instruction set: are the bits of a row always the same, whatever
the number of rows in the call and the number of threads?

Prints a digest of all results, so that instruction sets can be compared too.
"""

import hashlib
from collections.abc import Callable

import numpy as np

from haversack import kernels
from haversack.kernels.neurons import Neurons

ROWS = (1, 2, 7, 32, 257)
THREADS = (1, 2, 3, 8)
digest = hashlib.sha256()


def compare(name: object, part: Callable[[int, int], np.ndarray]) -> None:
    kernels.set_threads(1)
    expected = part(0, 257)
    digest.update(expected.tobytes())
    for threads in THREADS:
        kernels.set_threads(threads)
        for n in ROWS:
            start = 0 if n == 257 else 3 * n
            got, rows = part(start, start + n), expected[start : start + n]
            assert got.shape == rows.shape
            assert np.array_equal(got.view(np.uint32), rows.view(np.uint32)), (name, threads, n)


def row_kernels(rng: np.random.Generator, width: int) -> None:
    x = rng.standard_normal((257, width)).astype(np.float32) * 3
    up = rng.standard_normal((257, width)).astype(np.float32)
    weight, bias = up[0].copy(), up[1].copy()
    calls = {
        "rms_norm": lambda a, b: kernels.rms_norm(x[a:b], weight, 1e-5, offset=1.0),
        "layer_norm": lambda a, b: kernels.layer_norm(x[a:b], weight, bias, 1e-5),
        "softmax": lambda a, b: kernels.softmax(x[a:b]),
        "log_softmax": lambda a, b: kernels.log_softmax(x[a:b]),
        "silu": lambda a, b: kernels.gate(x[a:b], up[a:b], "silu"),
        "gelu": lambda a, b: kernels.gate(x[a:b], up[a:b], "gelu"),
        "gelu-tanh": lambda a, b: kernels.gate(x[a:b], up[a:b], "gelu-tanh"),
        "relu": lambda a, b: kernels.gate(x[a:b], up[a:b], "relu"),
        "softcap": lambda a, b: kernels.softcap(x[a:b], 2.5),
    }
    for name, call in calls.items():
        compare((name, width), call)


def rope_kernel(rng: np.random.Generator, width: int, turned: int, style: str) -> None:
    positions = np.arange(257) * 7
    frequencies = 10000.0 ** (-np.arange(0, turned, 2) / turned)
    x = rng.standard_normal((257, 3, width)).astype(np.float32)

    def turn(a: int, b: int) -> np.ndarray:
        return kernels.rope(x[a:b].copy(), *kernels.rope_table(positions[a:b], frequencies, 1.1), style)

    compare(("rope", width, turned, style), turn)


def mixture_kernels(rng: np.random.Generator, experts: int, width: int) -> None:
    logits = rng.standard_normal((257, experts)).astype(np.float32)
    for scoring in ("softmax", "sigmoid"):
        compare(
            ("route", experts, scoring),
            lambda a, b: kernels.route(logits[a:b], 3, scoring, normalized=True)[1],  # noqa: B023
        )
    values = rng.standard_normal((width, 40)).astype(np.float32)
    codes = rng.integers(-8, 8, values.shape).astype(np.int8)
    scales = rng.random((-(-width // 64), 40)).astype(np.float32)
    x = rng.standard_normal((257, width)).astype(np.float32)
    gate = np.maximum(rng.standard_normal((257, 40)), 0).astype(np.float32)
    for channels in (
        kernels.pack_channels(values, "f32"),
        kernels.pack_channels(values, "bf16"),
        kernels.pack_channels_int4(codes, scales, 64),
    ):
        matrix = Neurons(channels)
        compare(("neurons", channels.kind, width), lambda a, b: matrix.gated(x[a:b], gate[a:b]))  # noqa: B023


def attention_kernel(
    rng: np.random.Generator,
    kind: str,
    kv_heads: int,
    group: int,
    width: int,
    softcap: float | None,
    window: int,
) -> None:
    length = 70
    layer = kernels.CacheLayer.empty(kv_heads, 400, width, kind)
    k, v = rng.standard_normal((2, length + 257, kv_heads, width)).astype(np.float32)
    q = rng.standard_normal((257, kv_heads * group, width)).astype(np.float32)
    kernels.cache_write(layer, 0, k, v)

    def attend(a: int, b: int) -> np.ndarray:
        start = np.maximum(0, np.arange(length + a, length + b) - window + 1)
        return kernels.attention(q[a:b], layer, kernels.Visible(length + a, start), 0.125, softcap)

    compare((kind, kv_heads, group, width, window), attend)


def gap_kernel(rng: np.random.Generator, heads: int, width: int, window: int) -> None:
    channels, around = heads * width, 2 * window - 1
    parts = rng.standard_normal((257 + around, (2 + heads) * channels)).astype(np.float32)
    norm = rng.standard_normal((3, channels)).astype(np.float32)
    compare(
        ("gap_features", heads, width, window),
        lambda a, b: kernels.gap_features(parts[a : b + around], heads, window, *norm, 1e-5),
    )


def main() -> None:
    rng = np.random.default_rng(11)
    for width in (1, 15, 64, 77, 333, 2048):
        row_kernels(rng, width)
    for experts, width in ((4, 64), (60, 333), (128, 2100)):
        mixture_kernels(rng, experts, width)
    for width, turned in ((2, 2), (64, 64), (80, 32), (34, 34)):
        for style in ("half", "interleaved"):
            rope_kernel(rng, width, turned, style)
    for kind in ("f32", "f16", "int8"):
        attention_kernel(rng, kind, 1, 1, 16, None, 10_000)
        attention_kernel(rng, kind, 2, 8, 64, None, 10_000)
        attention_kernel(rng, kind, 3, 3, 20, 5.0, 10_000)
        attention_kernel(rng, kind, 1, 5, 128, None, 19)
        attention_kernel(rng, kind, 2, 2, 64, 3.0, 150)
    for heads, width, window in ((1, 5, 1), (4, 16, 4), (3, 20, 9)):
        gap_kernel(rng, heads, width, window)
    logits = rng.standard_normal(5000).astype(np.float32) * 3
    for step in range(50):
        token, log_probability = kernels.sample(
            logits, temperature=0.8, top_k=100, top_p=0.9, min_p=0.01, seed=5, step=step
        )
        digest.update(f"{token} {log_probability!r}".encode())
    print(kernels.isa(), digest.hexdigest())


main()
