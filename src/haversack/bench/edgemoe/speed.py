"""Time a token: EdgeMoE beside experts loaded on demand, in f32 and in 4 bits, and beside a plain LRU buffer.

By the clock: the engine decodes with real reads of the store, slowed to 50 and 550 MB/s (the paper's hard
disk and SSD), one thread computing; sides take turns. By events: the same routing is played with the same
books in simulated time (_events.py), at the computing times measured here, so that neither Python nor the
machine's other work is in the result. All sides have a buffer of the same bytes, ten 4-bit experts; those on
demand keep nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Side
from haversack.bench._streaming import fast_storage
from haversack.bench.edgemoe import _toy
from haversack.bench.edgemoe._bench import bench

RATES = (50, 550)
PLACES = 10
PROMPT, TOKENS = 16, 24
CHOSEN, FOUR, FULL = "edgemoe", "edgemoe:bits=4", "edgemoe:bits=32"
OURS = "EdgeMoE"
SIDES = {
    OURS: (CHOSEN, "eviction=intent,predict=paths"),
    "f32 on demand": (FULL, "eviction=none,predict=none"),
    "int4 on demand": (FOUR, "eviction=none,predict=none"),
    "int4, LRU": (FOUR, "eviction=lru,predict=none"),
}
BARS = {"f32 on demand": ("f32", 2.5), "int4 on demand": ("int4", 1.15), "int4, LRU": ("lru", 1.10)}
PUBLISHED = {
    "f32 on demand": "2.64-3.03x (SSD), 4.49-4.76x (hard disk), Switch-base on a Jetson TX2",
    "int4 on demand": "1.19-2.12x",
    "int4, LRU": None,
}


def buffer_kib() -> int:
    """Ten experts of 4 bits, with what an entry takes beside its bytes."""
    from haversack.core.pack import Pack
    from haversack.models import read_architecture
    from haversack.run.residency._edgemoe_held import Fitted
    from haversack.run.residency.edgemoe import EdgeMoE

    source = Pack.open(_toy.pack(FOUR))
    fitted = Fitted.of(EdgeMoE(), source, read_architecture(source.record.architecture))
    return -(-PLACES * max(room.held for room in fitted.rooms.values()) // 1024)


def opened(side: str, mb_s: int, pack: Callable[[str], Path]) -> Any:
    """An engine for one side."""
    from haversack.run import Engine

    precision, given = SIDES[side]
    kib = buffer_kib()
    if precision == FULL:  # on demand nothing is kept: the room of one expert
        kib = 0
    residency = f"streamed:edgemoe,buffer_kib={kib},mb_s={mb_s},{given}"
    return Engine.open(pack(precision), residency=residency, activations="f32")


def decode(engine: Any, prompt: Any, count: int) -> tuple[float, list[int]]:
    """Seconds for `count` tokens after `prompt`, and the tokens."""
    cache = engine.cache(len(prompt) + count + 1)
    logits, _ = engine.step(prompt, cache=cache)
    tokens = []
    began = perf_counter()
    for _ in range(count):
        tokens.append(int(logits[0].argmax()))
        logits, _ = engine.step(tokens[-1:], cache=cache)
    return perf_counter() - began, tokens


def rows(mb_s: int) -> list[Row]:
    found = []
    for name, (short, bar) in BARS.items():
        found += [
            Row(
                f"{how}{short}-{mb_s}",
                f"tokens a second at {mb_s} MB/s{words}, beside {name}",
                "tokens/s",
                "time",
                Bar(">=", bar),
                published=PUBLISHED[name],
                quick=not how and mb_s == 550,
            )
            for how, words in (("", ""), ("events-", ", in simulated time"))
        ]
    found += [
        Row(
            f"{how}bound-{mb_s}",
            f"time at {mb_s} MB/s{words} over what the storage's bandwidth and computing allow",
            "times",
            "time",
            Bar("<=", 1.4),
            judged="ours",
        )
        for how, words in (("", ""), ("events-", ", in simulated time"))
    ]
    found.append(
        Row(
            f"memory-{mb_s}",
            f"tokens a second at {mb_s} MB/s, beside the same model in memory",
            "tokens/s",
            "time",
        )
    )
    return found


def timed(run: Run, mb_s: int) -> Outcomes:
    with fast_storage(_toy.pack) as pack:
        return _timed(run, mb_s, pack)


def _timed(run: Run, mb_s: int, pack: Callable[[str], Path]) -> Outcomes:
    from haversack.kernels import set_threads, threads
    from haversack.run import Engine

    before = threads()
    set_threads(1)
    engines = {name: opened(name, mb_s, pack) for name in SIDES}
    engines["in memory"] = Engine.open(pack(CHOSEN), residency="copied", activations="f32")
    held = engines[OURS].held
    prompts = _toy.prompts(MIN_PAIRS + 2, PROMPT, run.seed)
    spent = 0.0
    bounds: list[float] = []
    try:
        for engine in engines.values():
            decode(engine, prompts[0], 4)
        rounds = {name: iter(prompts[1:]) for name in engines}

        def side(name: str) -> float:
            nonlocal spent
            stalled = held.buffer.statistics.stall_s
            began = perf_counter()
            seconds, _ = decode(engines[name], next(rounds[name]), TOKENS)
            if name == OURS:
                spent += perf_counter() - began
                least = held.buffer.least_bytes()
                computing = spent - (held.buffer.statistics.stall_s - start)
                bounds.append(spent / max(least / (mb_s * 1e6), computing))
            assert stalled <= held.buffer.statistics.stall_s
            return TOKENS / seconds

        start = held.buffer.statistics.stall_s
        held.buffer.forget_trace()
        taken = run.interleave({name: partial(side, name) for name in engines}, MIN_PAIRS)
        told = held.words().replace("\n", "; ")
    finally:
        for engine in engines.values():
            engine.close()
        set_threads(before)
    found: dict[str, Outcome] = {}
    for name, (short, _) in BARS.items():
        found[f"{short}-{mb_s}"] = Outcome.of(taken, ours=OURS, baseline=name, note=told)
    found[f"bound-{mb_s}"] = Outcome(Side(OURS, tuple(bounds)), note=told)
    found[f"memory-{mb_s}"] = Outcome.of(taken, ours=OURS, baseline="in memory")
    return found


@bench.measure(*rows(50), seconds=240, quick_seconds=60)
def clock_50(run: Run) -> Outcomes:
    _toy.trained(run)
    return {**timed(run, 50), **played(run, 50)}


@bench.measure(*rows(550), seconds=120, quick_seconds=45)
def clock_550(run: Run) -> Outcomes:
    _toy.trained(run)
    return timed(run, 550) if run.quick else {**timed(run, 550), **played(run, 550)}


def computing(run: Run) -> tuple[float, float]:
    """Seconds of a layer outside its expert, and of one expert, by the model in memory on one thread."""
    from haversack.kernels import matmul, set_threads, threads, unpack
    from haversack.run import Engine

    before = threads()
    set_threads(1)
    try:
        with Engine.open(_toy.pack(FOUR), residency="copied", activations="f32") as engine:
            prompt = _toy.prompts(1, PROMPT, run.seed)[0]
            whole = min(decode(engine, prompt, 48)[0] for _ in range(5)) / 48 / _toy.LAYERS
            with engine.held.weights(0) as weights:
                names = [name for name in weights if ".experts.0." in name]
                matrices = [weights[name] for name in names]
            inputs = {m.columns: np.ones((1, m.columns), np.float32) for m in matrices}
            assert all(unpack(m).shape == m.shape for m in matrices)
            taken = []
            for _ in range(50):
                began = perf_counter()
                for matrix in matrices:
                    matmul(inputs[matrix.columns], matrix)
                taken.append(perf_counter() - began)
        expert = float(np.median(taken))
        return max(whole - expert, expert / 4), expert
    finally:
        set_threads(before)


def played(run: Run, mb_s: int) -> Outcomes:
    """The same sides in simulated time, one value a text."""
    from haversack.bench.edgemoe._events import bound_s, playback
    from haversack.bench.edgemoe.quality import routes_of
    from haversack.core.pack import Pack
    from haversack.models import read_architecture
    from haversack.run._eviction import eviction, least_missed
    from haversack.run._paths import PROFILE_NAME, Profile
    from haversack.run._prediction import NoGuess, Paths
    from haversack.run.residency._edgemoe_held import Fitted
    from haversack.run.residency.edgemoe import EdgeMoE

    block_s, expert_s = computing(run)
    budget = buffer_kib() * 1024
    texts = _toy.prompts(MIN_PAIRS, 96, run.seed + 1)
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    bounds = []
    for side, (precision, given) in SIDES.items():
        source = Pack.open(_toy.pack(precision))
        fitted = Fitted.of(EdgeMoE(), source, read_architecture(source.record.architecture))
        sizes = {
            key: (sum(source.tensors[name].nbytes for name in fitted.experts.tensors[key]), room.held)
            for key, room in fitted.rooms.items()
        }
        stored = {key: one for key, (one, _) in sizes.items()}
        held = {key: one for key, (_, one) in sizes.items()}
        profile = Profile.of_bytes(source.read_file(PROFILE_NAME))
        for text in texts:
            routes = routes_of(precision, text)
            recipe = "intent" if side == OURS else "lru"
            playing = playback(
                budget if precision != FULL else max(held for _, held in sizes.values()),
                eviction(recipe, _toy.LAYERS, _toy.EXPERTS, profile.frequencies),
                Paths(profile) if "paths" in given else NoGuess(),
                mb_s=mb_s,
                sizes=sizes,
                block_s=block_s,
                expert_s=expert_s,
                chance=1 / _toy.EXPERTS,
                keeps="none" not in given.partition(",")[0],
            )
            taken = playing.play(routes)
            seconds[side].append(len(routes) / taken)
            if side == OURS:
                trace = [
                    (layer, int(e))
                    for token in routes
                    for layer, experts in enumerate(token)
                    for e in experts
                ]
                least = least_missed(trace, held.__getitem__, budget, stored.__getitem__)
                bounds.append(taken / bound_s(least, mb_s * 1e6, taken - playing.stall_s))
    note = f"a layer {1e3 * block_s:.3f} ms and an expert {1e3 * expert_s:.3f} ms of computing, measured"
    found = {
        f"events-{short}-{mb_s}": Outcome.of(seconds, ours=OURS, baseline=name, note=note)
        for name, (short, _) in BARS.items()
    }
    found[f"events-bound-{mb_s}"] = Outcome(Side(OURS, tuple(bounds)), note=note)
    return found
