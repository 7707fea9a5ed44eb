"""Planes that stream change no token and keep to their bytes, whatever the order and whatever leaves."""

from __future__ import annotations

import itertools
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench._streaming import process_over_budget
from haversack.bench.d2moe import _toy
from haversack.bench.d2moe._bench import bench
from haversack.bench.d2moe.speed import TEXTS, buffer_kib, decode
from haversack.bench.edgemoe import _toy as edgemoe

ORDERS, EVICTIONS, PLACES = ("hebf", "id-order"), ("planes", "intent", "lru", "none"), (0, 3, 10, 48)
PROMPT, STEPS = 24, 12


@bench.measure(
    Row(
        "tokens",
        f"tokens of {TEXTS} texts at once that differ from those of each text alone with the same bits in "
        "memory: orders by evictions by buffer sizes",
        "tokens",
        "quality",
        Bar("==", 0.0),
        judged="ours",
        quick=True,
    ),
    Row(
        "expert-bytes",
        "most bytes of planes held, over the bytes allowed, the worst of the same runs",
        "share",
        "memory",
        Bar("<=", 1.0),
        judged="ours",
        published="1600 MB beside 2500 MB in memory (LLaMA-MoE)",
        quick=True,
    ),
    seconds=240,
    quick_seconds=15,
)
def streamed(run: Run) -> Outcomes:
    _toy.trained(run)
    from haversack.run import Engine

    path, prompts = _toy.pack(_toy.ROUTED), edgemoe.prompts(TEXTS, PROMPT, run.seed)
    with Engine.open(path, residency="copied", activations="f32") as engine:
        plain = [decode(engine, [prompt], STEPS)[1][0] for prompt in prompts]
    place = buffer_kib() / 10
    ways = list(itertools.product(ORDERS, EVICTIONS, PLACES))
    if run.quick:
        ways = [ways[int(i)] for i in np.random.default_rng(run.seed).permutation(len(ways))[:8]]
    differing, shares = 0, []
    for order, eviction, places in ways:
        residency = f"streamed:d2moe,buffer_kib={round(place * places)},schedule={order},eviction={eviction}"
        with Engine.open(path, residency=residency, activations="f32") as engine:
            _, tokens = decode(engine, prompts, STEPS)
            differing += sum(
                a != b for one, two in zip(tokens, plain, strict=True) for a, b in zip(one, two, strict=True)
            )
            shares.append(engine.held.buffer.statistics.peak_nbytes / engine.held.budget)
    note = f"{len(ways)} of {len(ORDERS) * len(EVICTIONS) * len(PLACES)} ways"
    return {
        "tokens": Outcome.single(differing, name="streamed", note=note),
        "expert-bytes": Outcome.single(max(shares), name="held", note=note),
    }


@bench.measure(
    Row(
        "process-bytes",
        "peak memory of the whole process, pages of the pack in the page cache included, over its budget",
        "share",
        "memory",
        Bar("<=", 1.0),
        judged="ours",
        published="33-53 % less than EdgeMoE",
        quick=True,
    ),
    Row(
        "router-bytes",
        "bytes of the bit routers beside those of the experts",
        "bytes",
        "memory",
        published="0.53 %",
    ),
    Row(
        "router-time",
        f"time of a step of {TEXTS} texts in memory with bit routers that choose all bits, beside none",
        "seconds",
        "time",
        published="1.67 % of latency",
    ),
    seconds=60,
    quick_seconds=8,
)
def resident(run: Run) -> Outcomes:
    _toy.trained(run)
    from haversack.core.pack import Pack
    from haversack.run._levels import ROUTER_NAME

    path, prompt = _toy.pack(_toy.ROUTED), edgemoe.prompts(1, PROMPT, run.seed)[0]
    share, note = process_over_budget(path, prompt, STEPS, "streamed:d2moe", 2.0, "planes")
    found = {"process-bytes": Outcome.single(share, name="D2MoE", note=note)}
    if run.quick:
        return found
    source = Pack.open(path)
    experts = sum(
        entry.nbytes for name, entry in source.tensors.items() if name.rpartition(".")[0] in source.forms
    )
    sizes = (source.record.files[ROUTER_NAME].size, experts)
    found["router-bytes"] = Outcome.single(sizes[0], sizes[1], name="routers", against="experts")
    found["router-time"] = router_time(run)
    return found


class AllBits:
    """Runs the routers, and takes all bits: what is left of a difference is what routing costs."""

    def __init__(self, routers: Any, level: int) -> None:
        self._routers, self._level = routers, level

    def __call__(self, block: int, x: Any, experts: Any) -> Any:
        chosen = self._routers(block, x, experts)
        chosen[:] = self._level
        return chosen


def router_time(run: Run) -> Outcome:
    """Steps with the routers asked and without."""
    from haversack.run import Engine
    from haversack.run._levels import Uniform

    prompts = edgemoe.prompts(TEXTS, PROMPT, run.seed)
    with Engine.open(_toy.pack(_toy.ROUTED), residency="copied", activations="f32") as engine:
        choices = {"routers": AllBits(engine.forward.levels, 2), "none": Uniform(2)}

        def side(name: str) -> float:
            engine.forward.levels = choices[name]
            began = perf_counter()
            decode(engine, prompts, STEPS)
            return perf_counter() - began

        taken = run.interleave({name: partial(side, name) for name in choices}, MIN_PAIRS)
    return Outcome(Side("routers", tuple(taken["routers"])), Side("none", tuple(taken["none"])))


@bench.measure(
    Row(
        "real-size",
        "throughput of Mixtral-8x7B in nested bits, beside EdgeMoE",
        "tokens/s",
        "time",
        published="1.14-1.39x",
    ),
    Row(
        "perplexity",
        "perplexity of LLaMA-MoE-3.5B on WikiText-2 with bit routers, beside int8",
        "perplexity",
        "quality",
        published="15.68 (2-4 bits) and 14.58 (5-8 bits) of 14.55",
    ),
    seconds=1,
)
def elsewhere(run: Run) -> Outcomes:
    raise Unavailable("the checkpoints are not at hand here")
