"""The household: searching in a wrong place costs a step, preparing out of order spoils the task."""

from __future__ import annotations

import functools

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.hera._bench import SEEDS, Found, Size, Tasks, bench, experiment
from haversack.bench.hera._rows import outcomes_of, rows_of
from haversack.share._hera_curve import at_share
from haversack.share._hera_household import Household

QUICK = Size(rollouts=4, rounds=1, random_runs=1, all_routers=False)


def tasks(seed: int, quick: bool) -> Tasks:
    """Houses that no other seed has."""
    counts = {"taught": 60, "train": 40, "dev": 20, "test": 40} if quick else None
    counts = counts or {"taught": 60, "train": 120, "dev": 30, "test": 60}
    begin = seed * 1000
    parts: dict[str, tuple[Household, ...]] = {}
    for part, count in counts.items():
        parts[part] = tuple(Household(begin + at) for at in range(count))
        begin += count
    return Tasks(**parts)


def seeds(run: Run) -> list[Found]:
    """What each seed came to."""
    if run.quick:
        at = run.seed % 1_000_000
        return [experiment("household", at, QUICK, functools.partial(tasks, at, True), run.say)]
    return [
        experiment(
            "household", run.seed + at, Size(), functools.partial(tasks, run.seed + at, False), run.say
        )
        for at in range(SEEDS)
    ]


@bench.measure(
    *rows_of("household", quick=True),
    Row(
        "household-over-imitation",
        "household, where disagreement is not importance: success of both stages over imitation at equal "
        "cloud share",
        "success rate",
        "quality",
        Bar(">=", 1.05),
    ),
    seconds=420,
    quick_seconds=30,
)
def household(run: Run) -> Outcomes:
    found = seeds(run)
    rows = dict(outcomes_of("household", found, run.quick))
    if not run.quick:
        rows["household-over-imitation"] = Outcome(
            Side("both stages", tuple(one.chosen.success for one in found)),
            Side("imitation", tuple(at_share(one.curve("imitation"), one.chosen.share) for one in found)),
        )
    return rows
