"""Pipelined beside blocking, by the clock: the same processes, weights, recordings and configuration."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Side
from haversack.bench.mmedge._bench import LARGEST, bench, recordings, units_of
from haversack.sense._pipeline_run import Pipeline
from haversack.sense._pipeline_space import Config
from haversack.sense.pipeline import Result

PAIRS = 21
CONFIGS = {
    "small": Config("small", 20, "small", 400),
    "medium": Config("medium", 25, "medium", 400),
    "large": LARGEST,
}
BATCHES = (1, 4, 32)
SLOWER = 16


def windows(pipeline: Pipeline, blocking: int, config: Config) -> None:
    """What the next windows of an open pipeline are: fixed, without the gate."""
    pipeline.config, pipeline.blocking, pipeline.skip = config, blocking, False


def best_batch(answer: Callable[[int], Result]) -> int:
    """The batch with which blocking answers first, each tried three times."""
    taken = {batch: statistics.median(answer(batch).latency_ms for _ in range(3)) for batch in BATCHES}
    return min(taken, key=lambda batch: taken[batch])


def pairs(run: Run, config: Config, slower: int) -> tuple[dict[str, list[float]], int, list[bool], int]:
    """Latencies of interleaved windows, blocking's batch, whether both gave the same answer, and how many of
    blocking's answers were right less pipelined's."""
    count = MIN_PAIRS if run.quick else PAIRS
    data = recordings(count, run.seed % 1_000_000)
    taken: dict[str, list[float]] = {"pipelined": [], "blocking": []}
    same, lost = [], 0
    with Pipeline("events", config=config, slower=slower) as pipeline:

        def answer(blocking: int, at: int = 0) -> Result:
            windows(pipeline, blocking, config)
            return pipeline.answer(units_of(data, at))

        batch = best_batch(answer)
        for at in range(count):
            order = (0, batch) if at % 2 else (batch, 0)
            found = {blocking: answer(blocking, at) for blocking in order}
            taken["pipelined"].append(found[0].latency_ms)
            taken["blocking"].append(found[batch].latency_ms)
            same.append(found[0].label == found[batch].label)
            truth = pipeline.shape.labels[data.labels[at]]
            lost += (found[batch].label == truth) - (found[0].label == truth)
    return taken, batch, same, lost


@bench.measure(
    *[
        Row(
            f"latency-{name}",
            f"from the last sample to the answer, {config}: pipelined over blocking",
            "ms",
            "time",
            Bar("<=", 0.35),
            published="up to 75.8 % lower",
            quick=name == "large",
        )
        for name, config in CONFIGS.items()
    ],
    Row(
        "same-answers",
        "accuracy of pipelined less that of blocking over the same recordings, same weights",
        "percentage points",
        "quality",
        Bar("in", (-0.5, 0.5)),
        judged="ours",
        quick=True,
    ),
    seconds=240,
    quick_seconds=35,
)
def plain(run: Run) -> Outcomes:
    found: dict[str, Outcome] = {}
    same: list[bool] = []
    lost = 0
    for name, config in CONFIGS.items():
        if run.quick and name != "large":
            continue
        taken, batch, agree, fewer = pairs(run, config, 1)
        same += agree
        lost += fewer
        note = f"blocking encodes {batch} units a call, the best of {BATCHES}"
        found[f"latency-{name}"] = Outcome.of(taken, ours="pipelined", baseline="blocking", note=note)
    note = f"{sum(same)} of {len(same)} answers are the same"
    found["same-answers"] = Outcome.single(-100 * lost / len(same), note=note)
    return found


@bench.measure(
    Row(
        "latency-slower",
        f"the same with the largest networks on a processor that is played {SLOWER} times slower",
        "ms",
        "time",
        Bar("<=", 0.35),
        published="up to 75.8 % lower",
    ),
    seconds=120,
)
def slower(run: Run) -> Outcomes:
    taken, batch, *_ = pairs(run, LARGEST, SLOWER)
    note = f"every computation is done {SLOWER} times; blocking encodes {batch} units a call"
    return {"latency-slower": Outcome.of(taken, ours="pipelined", baseline="blocking", note=note)}


@bench.measure(
    Row(
        "predicted",
        "the latency that the profile predicts over the measured one, largest networks",
        "ms",
        "time",
        Bar("in", (0.5, 1.5)),
    ),
    seconds=60,
)
def predicted(run: Run) -> Outcomes:
    data = recordings(MIN_PAIRS, run.seed % 1_000_000)
    with Pipeline("events", config=LARGEST, skip=False, slower=SLOWER) as pipeline:
        profile = pipeline.measure()
        taken = [pipeline.answer(units_of(data, at)).latency_ms for at in range(MIN_PAIRS)]
    guess = profile.of(LARGEST)
    return {
        "predicted": Outcome(
            Side("the profile", (guess,) * len(taken)),
            Side("measured", tuple(taken)),
            "stages, not windows, are timed",
        )
    }
