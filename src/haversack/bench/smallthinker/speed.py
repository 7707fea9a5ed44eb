"""Time a token: reads that begin before attention beside reads that begin behind it, a cache of matrices
beside none, and what a small memory costs the twin whose routers come late.

By the clock the engine decodes with real reads of the store, slowed to 50 and 550 MB/s and to the pace at
which a layer's reads take as long as its attention; one thread computes, sides take turns. By events the same
routing is played with the same books in simulated time (_events.py), at the computing times measured here.
All sides are Q4_0 and, but for `no cache`, have a buffer of half of all matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row
from haversack.bench._streaming import fast_storage
from haversack.bench.edgemoe.speed import decode
from haversack.bench.smallthinker import _twins
from haversack.bench.smallthinker._bench import bench
from haversack.bench.smallthinker._events import Times, play
from haversack.run.residency.smallthinker import overlapped

I32 = NDArray[np.int32]
PRECISION = "q4_0"
MATRICES = 3 * _twins.LAYERS * _twins.EXPERTS
CHOSEN = 3 * _twins.TOP
PLACES = MATRICES // 2
PROMPT, TOKENS, TEXT = 64, 24, 160
RATES = (50, 550)
CURVE = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Times of reading over those of attention."""
OURS, AFTER, NONE = "before attention", "after attention", "no cache"
LATE, MEMORY, LATE_MEMORY = "late router", "early, in memory", "late, in memory"
WAYS: Mapping[str, tuple[str, str]] = {
    OURS: ("early", "early=true"),
    AFTER: ("early", "early=false"),
    NONE: ("early", "early=false,keeps=false"),
    LATE: ("late", "early=true"),
}


@cache
def sizes() -> tuple[int, int]:
    """Bytes of a matrix on storage and in memory; all are of one size."""
    from haversack.core.pack import Pack
    from haversack.models import read_architecture
    from haversack.run.residency.smallthinker import SmallThinker

    source = Pack.open(_twins.pack("early", PRECISION))
    fitted = SmallThinker().fitted(source, read_architecture(source.record.architecture))
    held = {room.held for room in fitted.rooms.values()}
    (name,) = fitted.units[0, 0, 0]
    (most,) = held
    return source.tensors[name].nbytes, most


def opened(name: str, mb_s: int, pack: Callable[[str], Path]) -> Any:
    """An engine for one side."""
    from haversack.run import Engine

    if name in (MEMORY, LATE_MEMORY):
        return Engine.open(pack("early" if name == MEMORY else "late"), residency="copied", activations="f32")
    twin, given = WAYS[name]
    kib = -(-PLACES * sizes()[1] // 1024)
    way = f"streamed:smallthinker,buffer_kib={kib},mb_s={mb_s},{given}"
    return Engine.open(pack(twin), residency=way, activations="f32")


def computing(run: Run) -> tuple[float, float]:
    """Seconds of a layer before its experts, and of one matrix of an expert, in memory on one thread."""
    from haversack.kernels import matmul, set_threads, threads
    from haversack.run import Engine

    before = threads()
    set_threads(1)
    try:
        with Engine.open(_twins.pack("early", PRECISION), residency="copied", activations="f32") as engine:
            prompt = _twins.prompts(1, PROMPT, run.seed)[0]
            whole = min(decode(engine, prompt, 48)[0] for _ in range(5)) / 48 / _twins.LAYERS
            with engine.held.weights(0) as weights:
                matrix = weights["model.layers.0.block_sparse_moe.experts.0.gate.weight"]
            x, taken = np.ones((1, matrix.columns), np.float32), []
            for _ in range(200):
                began = perf_counter()
                matmul(x, matrix)
                taken.append(perf_counter() - began)
        one = float(np.median(taken))
        return max(whole - CHOSEN * one, whole / 4), one
    finally:
        set_threads(before)


def routes_of(twin: str, text: I32) -> I32:
    """What every router chooses while `text` is read: i32 [tokens, layers, k]."""
    from haversack.run import Engine
    from haversack.run._routing import RoutingTrace

    trace = RoutingTrace()
    with Engine.open(_twins.pack(twin, PRECISION), residency="copied", activations="f32") as engine:
        engine.observe(trace)
        engine.step(text, cache=engine.cache(len(text)), want="none")
    return np.stack([trace.chosen(block)[1] for block in trace.blocks], axis=1)


def in_turn(
    run: Run, mb_s: int, names: tuple[str, ...], pack: Callable[[str], Path]
) -> tuple[dict[str, list[float]], str]:
    """Tokens a second of every side, in turn; and what the engine says of ours."""
    from haversack.kernels import set_threads, threads

    before = threads()
    set_threads(1)
    engines = {name: opened(name, mb_s, pack) for name in names}
    prompts = _twins.prompts(MIN_PAIRS + 1, PROMPT, run.seed)
    try:
        for engine in engines.values():
            decode(engine, prompts[0], 4)
        rounds = {name: iter(prompts[1:]) for name in engines}

        def side(name: str) -> float:
            return TOKENS / decode(engines[name], next(rounds[name]), TOKENS)[0]

        taken = run.interleave({name: partial(side, name) for name in engines}, MIN_PAIRS)
        return taken, engines[names[0]].held.words().replace("\n", "; ")
    finally:
        for engine in engines.values():
            engine.close()
        set_threads(before)


def slowdowns(taken: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """How many times slower each twin is in half of its matrices than in memory."""
    pairs = {"early router": (MEMORY, OURS), "late router": (LATE_MEMORY, LATE)}
    return {
        name: [fast / slow for fast, slow in zip(taken[whole], taken[small], strict=True)]
        for name, (whole, small) in pairs.items()
    }


def rows(mb_s: int) -> list[Row]:
    return [
        Row(
            f"ahead-{mb_s}",
            f"tokens a second at {mb_s} MB/s, reads begun before attention, beside behind it",
            "tokens/s",
            "time",
            quick=mb_s == 550,
        ),
        Row(
            f"cached-{mb_s}",
            f"tokens a second at {mb_s} MB/s with half of the matrices cached, beside no cache",
            "tokens/s",
            "time",
            Bar(">=", 2.0),
        ),
        Row(
            f"slowdown-{mb_s}",
            f"slowdown at {mb_s} MB/s with half of the matrices cached, beside that of the twin whose router "
            "comes behind attention",
            "times",
            "time",
            Bar("<=", 0.999),
            published="1.5x beside 3.3x (21B in 8 GB beside Qwen3-30B-A3B)",
        ),
        Row(
            f"memory-{mb_s}",
            f"tokens a second at {mb_s} MB/s, beside the same model in memory",
            "tokens/s",
            "time",
        ),
    ]


def clock(run: Run, mb_s: int) -> Outcomes:
    _twins.trained(run)
    names = (OURS, AFTER) if run.quick else (OURS, AFTER, NONE, LATE, MEMORY, LATE_MEMORY)
    with fast_storage(lambda twin: _twins.pack(twin, PRECISION)) as pack:
        taken, told = in_turn(run, mb_s, names, pack)
    found = {f"ahead-{mb_s}": Outcome.of(taken, ours=OURS, baseline=AFTER, note=told)}
    if not run.quick:
        found |= {
            f"cached-{mb_s}": Outcome.of(taken, ours=OURS, baseline=NONE, note=told),
            f"memory-{mb_s}": Outcome.of(taken, ours=OURS, baseline=MEMORY, note=told),
            f"slowdown-{mb_s}": Outcome.of(slowdowns(taken), ours="early router", baseline="late router"),
        }
    return found


@bench.measure(*rows(50), seconds=200, quick_seconds=30)
def clock_50(run: Run) -> Outcomes:
    return clock(run, 50)


@bench.measure(*rows(550), seconds=100, quick_seconds=20)
def clock_550(run: Run) -> Outcomes:
    return clock(run, 550)


@bench.measure(
    Row(
        "ahead-even",
        "tokens a second where a layer's reads take as long as its attention: begun before it, beside behind",
        "tokens/s",
        "time",
        Bar(">=", 1.2),
    ),
    Row(
        "events-ahead-even",
        "the same in simulated time",
        "tokens/s",
        "time",
        Bar(">=", 1.2),
        quick=True,
    ),
    *(
        Row(
            f"events-ahead-{share:g}",
            f"the same where reads take {share:g} times as long as attention",
            "tokens/s",
            "time",
        )
        for share in CURVE
        if share != 1.0
    ),
    *(
        row
        for mb_s in RATES
        for row in (
            Row(f"events-ahead-{mb_s}", f"the same in simulated time at {mb_s} MB/s", "tokens/s", "time"),
            Row(
                f"events-cached-{mb_s}",
                f"tokens a second in simulated time at {mb_s} MB/s with half of the matrices cached, beside "
                "no cache",
                "tokens/s",
                "time",
                Bar(">=", 2.0),
            ),
            Row(
                f"events-slowdown-{mb_s}",
                f"slowdown in simulated time at {mb_s} MB/s with half of the matrices cached, beside that of "
                "the twin whose router comes behind attention",
                "times",
                "time",
                Bar("<=", 0.999),
                published="1.5x beside 3.3x (21B in 8 GB beside Qwen3-30B-A3B)",
            ),
        )
    ),
    seconds=90,
    quick_seconds=15,
)
def curve(run: Run) -> Outcomes:
    _twins.trained(run)
    nbytes, _ = sizes()
    attention_s, matrix_s = computing(run)
    rest_s = CHOSEN * matrix_s
    texts = _twins.prompts(MIN_PAIRS, TEXT, run.seed + 1)
    routes = {twin: [routes_of(twin, text) for text in texts] for twin in _twins.TWINS}
    layers = TEXT * _twins.LAYERS

    def per_s(twin: str, times: Times, **given: Any) -> list[float]:
        return [TEXT / play(one, PLACES, times, nbytes=nbytes, **given).seconds for one in routes[twin]]

    def even(share: float) -> Times:
        """Storage at which the reads of a layer take `share` of attention."""
        free = Times(attention_s, matrix_s, 1e15)
        read = [play(one, PLACES, free, nbytes=nbytes, early=True).loads for one in routes["early"]]
        loads = sum(read) / len(read)
        return Times(attention_s, matrix_s, nbytes * loads / layers / (share * attention_s))

    found: dict[str, Any] = {}
    for share in CURVE:
        times = even(share)
        sides = {OURS: per_s("early", times, early=True), AFTER: per_s("early", times, early=False)}
        bound = overlapped(attention_s, share * attention_s, rest_s)
        note = (
            f"attention {1e3 * attention_s:.3f} ms, experts {1e3 * rest_s:.3f} ms a layer, as measured; "
            f"{times.bytes_per_s / 1e6:.0f} MB/s; the bound (A + L + F) / (max(A, L) + F) is {bound:.3f}"
        )
        name = "even" if share == 1.0 else f"{share:g}"
        found[f"events-ahead-{name}"] = Outcome.of(sides, ours=OURS, baseline=AFTER, note=note)
    if run.quick:
        return found
    for mb_s in RATES:
        times = Times(attention_s, matrix_s, mb_s * 1e6)
        free = Times(attention_s, matrix_s, 1e15)
        sides = {
            OURS: per_s("early", times, early=True),
            AFTER: per_s("early", times, early=False),
            NONE: per_s("early", times, early=False, keeps=False),
            LATE: per_s("late", times, early=False),
            MEMORY: per_s("early", free, early=True),
            LATE_MEMORY: per_s("late", free, early=False),
        }
        found[f"events-ahead-{mb_s}"] = Outcome.of(sides, ours=OURS, baseline=AFTER)
        found[f"events-cached-{mb_s}"] = Outcome.of(sides, ours=OURS, baseline=NONE)
        found[f"events-slowdown-{mb_s}"] = Outcome.of(
            slowdowns(sides), ours="early router", baseline="late router"
        )
    rate = max(1, round(even(1.0).bytes_per_s / 1e6))
    with fast_storage(lambda twin: _twins.pack(twin, PRECISION)) as pack:
        taken, told = in_turn(run, rate, (OURS, AFTER), pack)
    found["ahead-even"] = Outcome.of(taken, ours=OURS, baseline=AFTER, note=f"{rate} MB/s; {told}")
    return found
