"""Schedules of two processors: `code` with outliers reads 1024 held-out tokens in static int8.

Either each processor has a core of its own, and serial runs one subgraph at a time on the core that it
belongs to; or both are all cores, which take turns on one thread, and serial uses all too. Sides are
interleaved; graphs are built before.
The integer processor is this machine's int8 kernel, so its products are not as far ahead of the float
processor's work as a phone's are: see phone.py for those.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Side
from haversack.bench.mllm_npu._bench import FILES, bench
from haversack.bench.mllm_npu._models import held_out, model_folder, pack_of

PROMPT, CHUNK = 1024, 128
SIDES = {
    "serial, a core each": f"chunked:shadow:tokens={CHUNK},policy=serial,cores=apart",
    "chunk order, a core each": f"chunked:shadow:tokens={CHUNK},policy=chunk,cores=apart",
    "out of order, a core each": f"chunked:shadow:tokens={CHUNK},cores=apart",
    "serial, all cores": f"chunked:shadow:tokens={CHUNK},policy=serial",
    "chunk order, all cores": f"chunked:shadow:tokens={CHUNK},policy=chunk",
    "out of order, all cores": f"chunked:shadow:tokens={CHUNK}",
}
ALONE = "serial, a core each"
QUICK = ("serial, all cores", "out of order, all cores")
FLOAT = "float, all cores"


@bench.measure(
    Row(
        "overlap-apart",
        "time to read a prompt, a core for each processor: out of order beside serial",
        "ms",
        "time",
        Bar("<=", 0.82),
        published="18 to 44 % less",
    ),
    Row(
        "overlap-shared",
        "time to read a prompt, all cores for both: out of order beside a serial schedule that uses both",
        "ms",
        "time",
        Bar("<=", 1.0),
        quick=True,
    ),
    Row(
        "order-apart",
        "out of order beside chunk order, a core for each processor",
        "ms",
        "time",
        Bar("<=", 1.03),
    ),
    Row("order-shared", "out of order beside chunk order, all cores for both", "ms", "time", Bar("<=", 1.03)),
    Row(
        "overlap-replayed",
        "the schedules played over the times that each subgraph took in the fastest serial run, a core for "
        "each processor: out of order beside serial",
        "ms",
        "quality",
        published="18 to 44 % less",
    ),
    Row(
        "beside-float",
        "time to read a prompt beside the same engine in f32, whole, with all cores",
        "ms",
        "time",
        published="22.4x faster than five engines on phones' processors, on average",
    ),
    Row(
        "build",
        "milliseconds in which the graphs are built, beside the time of the prompt they are built for",
        "ms",
        "time",
        published="360 ms and 11.54 s a prompt length (Gemma-2B)",
    ),
    seconds=90,
    quick_seconds=12,
    watches=(*FILES, "native/base/pool.cpp"),
)
def schedules(run: Run) -> Outcomes:
    from haversack.run._engine import Engine
    from haversack.simulate.npu_prefill import simulate

    tokens = np.asarray(held_out(run, 3000, 2000).tokens, np.int32)[:PROMPT]
    pack, times, builds = pack_of("pruned"), {}, []
    fastest: list[Any] = []
    with ExitStack() as stack:

        def side(prefill: str, model: Any, activations: str) -> Callable[[], float]:
            engine = stack.enter_context(Engine.open(model, prefill=prefill, activations=activations))

            def once() -> float:
                cache = engine.cache(PROMPT)
                began = perf_counter()
                engine.slots.prefill.prefill(engine, tokens, cache)
                took = 1e3 * (perf_counter() - began)
                if prefill == SIDES[ALONE] and (not fastest or took < fastest[0]):
                    fastest[:] = [took, engine.told.spans, engine.prepared.graphs.shapes]
                return took

            once()
            if engine.told is not None:
                builds.append((engine.told.build_ms, engine.told.run_ms))
            return once

        names = QUICK if run.quick else tuple(SIDES)
        sides = {name: side(SIDES[name], pack, "int8-static") for name in names}
        if not run.quick:
            sides[FLOAT] = side("whole", model_folder(), "f32")
        times = run.interleave(sides, MIN_PAIRS if run.quick else 2 * MIN_PAIRS + 1)
    note = f"{PROMPT} tokens in chunks of {CHUNK}; " + ", ".join(
        f"{name} {PROMPT / statistics.median(values) * 1e3:.0f} tokens/s" for name, values in times.items()
    )

    def beside(ours: str, other: str) -> Outcome:
        return Outcome(Side(ours, tuple(times[ours])), Side(other, tuple(times[other])), note)

    found = {"overlap-shared": beside("out of order, all cores", "serial, all cores")}
    if run.quick:
        return found
    found["overlap-apart"] = beside("out of order, a core each", "serial, a core each")
    found["order-apart"] = beside("out of order, a core each", "chunk order, a core each")
    found["order-shared"] = beside("out of order, all cores", "chunk order, all cores")
    found["beside-float"] = beside("out of order, all cores", FLOAT)
    _, spans, shapes = fastest
    taken = [[0.0] * len(shapes) for _ in range(PROMPT // CHUNK)]
    for span in spans:
        taken[span.chunk][span.index] = 1e3 * (span.end - span.start)
    free, serial = (simulate(shapes, taken, policy).span for policy in ("out-of-order", "serial"))
    found["overlap-replayed"] = Outcome.single(free, serial, name="out of order", against="serial")
    found["build"] = Outcome(
        Side("build", tuple(build for build, _ in builds)), Side("run", tuple(ran for _, ran in builds))
    )
    return found
