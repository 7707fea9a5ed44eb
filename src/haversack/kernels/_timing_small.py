"""What all but the matrix products costs here, beside numpy: `python -m haversack.kernels._timing_small`.

One token, and 256, of a block of TinyLlama-1.1B's shape (width 2048, 32 heads over 4, feed-forward 5632,
vocabulary 32000); attention over 256 and 2,048 entries. Each line: the best time of the native call and of
its numpy twin, and their ratio; for attention also its operations a second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np

from haversack.kernels import attend, gates, norms, probabilities, rotary, sampling, shadow
from haversack.kernels._matrix import Array, pack_int8
from haversack.kernels.processor import isa, set_threads, usable_processors

HEADS, KV_HEADS, HEAD_DIM, WIDTH, FEED_FORWARD, VOCABULARY = 32, 4, 64, 2048, 5632, 32000
Call = Callable[[], object]


def best_seconds(call: Call, budget_seconds: float) -> float:
    """The shortest of at least three calls, repeated until the budget is spent; a long one is timed once."""
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    if first > 10 * budget_seconds:
        return first
    best, end, calls = first, time.perf_counter() + budget_seconds, 0
    while calls < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        calls += 1
    return best


def rows_of(tokens: int) -> Iterator[tuple[str, Call, Call]]:
    """Name, native call and numpy twin of the kernels that work row by row."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    x, weight = normal(tokens, WIDTH), normal(WIDTH)
    gate, up = normal(tokens, FEED_FORWARD), normal(tokens, FEED_FORWARD)
    q, k, v = (
        normal(tokens, HEADS, HEAD_DIM),
        normal(tokens, KV_HEADS, HEAD_DIM),
        normal(tokens, KV_HEADS, HEAD_DIM),
    )
    scores = normal(tokens, 4096)
    frequencies = 10000.0 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    positions = np.arange(tokens)
    cos, sin = rotary.rope_table(positions, frequencies)
    layer = attend.CacheLayer.empty(KV_HEADS, tokens, HEAD_DIM)
    yield "rms_norm", lambda: norms.rms_norm(x, weight, 1e-5), lambda: norms.rms_norm_twin(x, weight, 1e-5)
    yield (
        "layer_norm",
        lambda: norms.layer_norm(x, weight, weight, 1e-5),
        lambda: norms.layer_norm_twin(x, weight, weight, 1e-5),
    )
    for kind in ("silu", "gelu-tanh"):
        yield (
            f"gate {kind}",
            lambda kind=kind: gates.gate(gate, up, kind),  # type: ignore[misc]
            lambda kind=kind: gates.gate_twin(gate, up, kind),  # type: ignore[misc]
        )
    yield "softcap", lambda: gates.softcap(scores, 30.0), lambda: gates.softcap_twin(scores, 30.0)
    yield (
        "rope_table",
        lambda: rotary.rope_table(positions, frequencies),
        lambda: rotary.rope_table_twin(positions, frequencies),
    )
    yield "rope", lambda: rotary.rope(q, cos, sin), lambda: rotary.rope_twin(q, cos, sin)
    yield (
        "cache_write",
        lambda: attend.cache_write(layer, 0, k, v),
        lambda: attend.cache_write_twin(layer, 0, k, v),
    )
    yield "softmax", lambda: probabilities.softmax(scores), lambda: probabilities.softmax_twin(scores)
    yield (
        "log_softmax",
        lambda: probabilities.log_softmax(scores),
        lambda: probabilities.log_softmax_twin(scores),
    )


def shadow_of(tokens: int) -> tuple[str, Call, Call]:
    """What static inputs miss of a square matrix: six channels in 2048 pass the grid."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((tokens, WIDTH), np.float32)
    x[:, ::400] *= 60
    codes = rng.integers(-127, 128, (WIDTH, WIDTH), dtype=np.int8)
    made = shadow.Shadow(pack_int8(codes, np.full(WIDTH, 0.01, np.float32)), 0.04, out_scale=1.0)
    y = rng.standard_normal((tokens, WIDTH), np.float32)
    return "shadow", lambda: made.finish(x, y), lambda: shadow.finish_twin(made, x, y)


def attention_of(tokens: int, entries: int, kind: str) -> tuple[str, Call, Call, float]:
    """Attention of the last `tokens` of `entries`, and its operations (a multiply-add is two)."""
    rng = np.random.default_rng(0)
    layer = attend.CacheLayer.empty(KV_HEADS, entries, HEAD_DIM, kind)
    k, v = rng.standard_normal((2, entries, KV_HEADS, HEAD_DIM), np.float32)
    attend.cache_write(layer, 0, k, v)
    q = rng.standard_normal((tokens, HEADS, HEAD_DIM), np.float32)
    visible = attend.Visible(entries - tokens)
    seen = tokens * (entries - (tokens - 1) / 2)
    return (
        f"attention {kind}, {entries} entries",
        lambda: attend.attention(q, layer, visible, 0.125),
        lambda: attend.attention_twin(q, layer, visible, 0.125),
        4.0 * seen * HEADS * HEAD_DIM,
    )


def sampling_of() -> Iterator[tuple[str, Call, Call]]:
    logits = np.random.default_rng(0).standard_normal(VOCABULARY, np.float32) * 3
    yield "greedy", lambda: sampling.greedy(logits), lambda: sampling.greedy_twin(logits)
    filters = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
    yield (
        "filter_logits top-k top-p",
        lambda: sampling.filter_logits(logits, **filters),  # type: ignore[arg-type]
        lambda: sampling.filter_logits_twin(logits, **filters),  # type: ignore[arg-type]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Times all kernels but the matrix products on this machine.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--seconds", type=float, default=0.05, help="spent on each call")
    given = parser.parse_args()
    set_threads(given.threads)
    print(f"{isa()}, {given.threads} threads")
    print(f"{'kernel':32} {'tokens':>6} {'native us':>10} {'numpy us':>10} {'ratio':>7} {'GOP/s':>7}")
    for tokens in given.tokens:
        lines = [(*line, 0.0) for line in (*rows_of(tokens), shadow_of(tokens))]
        for kind in attend.CACHE_KINDS:
            lines += [attention_of(tokens, entries, kind) for entries in (256, 2048) if entries >= tokens]
        if tokens == 1:
            lines += [(*line, 0.0) for line in sampling_of()]
        for name, native, twin, operations in lines:
            ours, numpys = best_seconds(native, given.seconds), best_seconds(twin, given.seconds)
            rate = f"{operations / ours / 1e9:7.0f}" if operations else ""
            print(f"{name:32} {tokens:6} {ours * 1e6:10.1f} {numpys * 1e6:10.1f} {numpys / ours:7.1f} {rate}")


if __name__ == "__main__":
    main()
