"""Throughput of many texts that decode in lock step: D2MoE beside separate copies of each width, 4 bits on
demand, EdgeMoE's static bits, and the models in memory.

By the clock: real reads of the store, slowed to 50 and 550 MB/s, one thread computing; sides take turns. All
that stream have a buffer of the same bytes, ten 4-bit experts. Bit routers choose three bits in the mean, for
copies too; beside EdgeMoE they are shifted to as few bits as cost calibration text what its widths may cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Side
from haversack.bench._streaming import fast_storage
from haversack.bench.d2moe import _toy
from haversack.bench.d2moe._bench import bench
from haversack.bench.d2moe.routing import equal_quality
from haversack.bench.edgemoe import _toy as edgemoe

I32 = NDArray[np.int32]
RATES = (50, 550)
PLACES, TEXTS, PROMPT, STEPS = 10, 16, 16, 6
OURS, EQUAL = "D2MoE", "D2MoE, equal quality"
NESTED = "streamed:d2moe"
SIDES = {
    OURS: (_toy.ROUTED, NESTED),
    EQUAL: (_toy.ROUTED, NESTED),
    "copies": (_toy.COPIES, NESTED),
    "int4 on demand": (_toy.INT4, "streamed:edgemoe,eviction=none,predict=none"),
    "EdgeMoE": (_toy.STATIC, "streamed:edgemoe"),
    "by number": (_toy.ROUTED, f"{NESTED},schedule=id-order"),
    "LRU": (_toy.ROUTED, f"{NESTED},eviction=lru"),
    "int8 in memory": (_toy.INT8, "copied"),
    "int4 in memory": (_toy.INT4, "copied"),
}
BARS: dict[str, tuple[str, Bar | None, str | None]] = {
    "EdgeMoE": (
        "edgemoe",
        Bar(">=", 1.1),
        "1.14-1.39x (Mixtral), 1.06-1.16x (LLaMA-MoE)",
    ),  # of equal quality
    "copies": ("copies", Bar(">=", 1.5), "1.91-4.95x"),
    "int4 on demand": ("int4", None, "1.42-3.37x"),
    "by number": ("order", None, "1.11-1.21x"),
    "LRU": ("budget", None, "1.06-1.21x"),
    "int8 in memory": ("int8-memory", None, None),
    "int4 in memory": ("int4-memory", None, "89.1 of 94.3 tokens/s (LLaMA-MoE, AWQ)"),
}


def buffer_kib() -> int:
    """Ten experts of 4 bits, with what an entry takes beside its bytes."""
    from haversack.core.pack import Pack
    from haversack.models import read_architecture
    from haversack.run.residency._edgemoe_held import Fitted
    from haversack.run.residency.edgemoe import EdgeMoE

    source = Pack.open(_toy.pack(_toy.INT4))
    fitted = Fitted.of(EdgeMoE(), source, read_architecture(source.record.architecture))
    return -(-PLACES * max(room.held for room in fitted.rooms.values()) // 1024)


def opened(side: str, mb_s: int, pack: Callable[[str], Path], kib: int) -> Any:
    """An engine for one side."""
    from haversack.run import Engine
    from haversack.run._levels import router_of

    precision, residency = SIDES[side]
    if residency != "copied":
        residency += f",buffer_kib={kib},mb_s={mb_s}"
    engine = Engine.open(pack(precision), residency=residency, activations="f32")
    if side == EQUAL:
        engine.forward.levels = equal_quality()
    if precision == _toy.COPIES:
        from haversack.core.pack import Pack

        engine.forward.levels = router_of(Pack.open(pack(_toy.ROUTED)), engine.architecture)
    return engine


def decode(engine: Any, prompts: Sequence[I32], steps: int) -> tuple[float, list[list[int]]]:
    """Seconds for `steps` tokens of each of `prompts` in lock step after they were read, and the tokens."""
    from haversack.run._pool import Part, Together

    together = Together(engine, len(prompts), len(prompts[0]) + steps + 1)
    rows: list[Any] = []
    at_once = max(1, Together.rows // len(prompts[0]))
    for first in range(0, len(prompts), at_once):
        part = prompts[first : first + at_once]
        rows += together.step([Part(first + slot, prompt) for slot, prompt in enumerate(part)])
    tokens: list[list[int]] = [[] for _ in prompts]
    began = perf_counter()
    for _ in range(steps):
        for slot, row in enumerate(rows):
            tokens[slot].append(int(row.argmax()))
        rows = together.step([Part(slot, own[-1:]) for slot, own in enumerate(tokens)])
    return perf_counter() - began, tokens


def rows(mb_s: int) -> list[Row]:
    found = [
        Row(
            f"{short}-{mb_s}",
            f"tokens a second of {TEXTS} texts at {mb_s} MB/s, beside {name}",
            "tokens/s",
            "time",
            bar,
            published=published,
            quick=bar is not None and mb_s == 550,
        )
        for name, (short, bar, published) in BARS.items()
    ]
    found.append(
        Row(
            f"routed-{mb_s}",
            f"the same at {mb_s} MB/s with three bits in the mean, beside EdgeMoE",
            "tokens/s",
            "time",
        )
    )
    found.append(
        Row(
            f"bubbles-{mb_s}",
            f"seconds of a run at {mb_s} MB/s that the processor waits, beside the order of numbers",
            "seconds",
            "time",
            published="3.55 s in all for 2.6 s of reading and 2.04 s of computing, by number",
        )
    )
    found.append(
        Row(
            f"read-{mb_s}",
            "bytes read from storage for a token, beside copies",
            "bytes",
            "bytes",
            quick=mb_s == 550,
        )
    )
    return found


def timed(run: Run, mb_s: int) -> Outcomes:
    from haversack.kernels import set_threads, threads

    _toy.trained(run)
    equal_quality()
    kib, before = buffer_kib(), threads()
    names = [name for name in SIDES if not run.quick or name in (OURS, EQUAL) or BARS[name][1] is not None]
    with fast_storage(_toy.pack) as pack:
        set_threads(1)
        engines: dict[str, Any] = {}
        try:
            for name in names:
                engines[name] = opened(name, mb_s, pack, kib)
                decode(engines[name], edgemoe.prompts(TEXTS, PROMPT, run.seed), 1)
            return _turns(run, mb_s, engines)
        finally:
            for engine in engines.values():
                engine.close()
            set_threads(before)


def _turns(run: Run, mb_s: int, engines: dict[str, Any]) -> Outcomes:
    texts = [edgemoe.prompts(TEXTS, PROMPT, run.seed + 1 + i) for i in range(MIN_PAIRS)]
    rounds = {name: iter(texts) for name in engines}
    waited: dict[str, list[float]] = {name: [] for name in engines}
    read: dict[str, int] = {}

    def side(name: str) -> float:
        held = engines[name].held
        streams = hasattr(held, "buffer")
        stalled = held.buffer.statistics.stall_s if streams else 0.0
        stored = held.store.bytes_read if streams else 0
        seconds, _ = decode(engines[name], next(rounds[name]), STEPS)
        if streams:
            waited[name].append(held.buffer.statistics.stall_s - stalled)
            read[name] = read.get(name, 0) + held.store.bytes_read - stored
        return TEXTS * STEPS / seconds

    taken = run.interleave({name: partial(side, name) for name in engines}, MIN_PAIRS)
    told = engines[OURS].held.words().replace("\n", "; ")
    found: dict[str, Outcome] = {
        f"{BARS[name][0]}-{mb_s}": Outcome.of(taken, ours=OURS, baseline=name, note=told)
        for name in engines
        if name not in (OURS, EQUAL)
    }
    equal = engines[EQUAL].held.words().replace("\n", "; ")
    found[f"routed-{mb_s}"] = found[f"edgemoe-{mb_s}"]
    found[f"edgemoe-{mb_s}"] = Outcome.of(taken, ours=EQUAL, baseline="EdgeMoE", note=equal)
    if "by number" in engines:
        found[f"bubbles-{mb_s}"] = Outcome(
            Side(OURS, tuple(waited[OURS])), Side("by number", tuple(waited["by number"]))
        )
    tokens = MIN_PAIRS * TEXTS * (STEPS + PROMPT)
    found[f"read-{mb_s}"] = Outcome.single(
        read[OURS] / tokens, read["copies"] / tokens, name=OURS, against="copies", note="prompts included"
    )
    return found


@bench.measure(*rows(50), seconds=300)
def clock_50(run: Run) -> Outcomes:
    return timed(run, 50)


@bench.measure(*rows(550), seconds=180, quick_seconds=30)
def clock_550(run: Run) -> Outcomes:
    return timed(run, 550)
