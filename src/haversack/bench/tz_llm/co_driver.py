"""Ten thousand interleavings of the two worlds, one of them lying (simulate/co_driver.py)."""

from __future__ import annotations

import statistics

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.tz_llm._bench import SIMULATED, bench
from haversack.simulate.co_driver import interleave

INTERLEAVINGS = 10_000
QUICK = 1_000


@bench.measure(
    Row(
        "co-driver-open",
        "secure jobs outside of a protected window, and other jobs inside one, in 10,000 interleavings",
        "jobs",
        "quality",
        Bar("==", 0.0),
        judged="ours",
        quick=True,
    ),
    Row(
        "co-driver-stuck",
        "interleavings in which the secure world did not come to an end",
        "interleavings",
        "quality",
        Bar("==", 0.0),
        judged="ours",
        quick=True,
    ),
    Row(
        "co-driver-served",
        "jobs of either world that an honest world runs to their ends, of all",
        "share",
        "quality",
        Bar("==", 1.0),
        judged="ours",
    ),
    Row(
        "co-driver-switch",
        "overhead of a secure job's switch, of assumed costs of its steps",
        "us",
        "quality",
    ),
    seconds=60,
    quick_seconds=6,
    watches=SIMULATED,
)
def co_driver(run: Run) -> Outcomes:
    count = QUICK if run.quick else INTERLEAVINGS
    lying = [interleave(run.seed + i) for i in range(count)]
    honest = [interleave(run.seed + i, honest=True) for i in range(count // 10)]
    outcomes = [said for one in lying for said in one.outcomes.values()]
    done = outcomes.count("done")
    note = (
        f"{count} interleavings, {len(outcomes)} secure jobs: {done} done, {len(outcomes) - done} refused; "
        f"{sum(one.refused for one in lying)} accesses refused"
    )
    served = sum(len(one.executed) + one.own_jobs for one in honest)
    asked = sum(len(one.outcomes) + 4 for one in honest)
    costs = [cost for one in honest for cost in one.switch_us]
    return {
        "co-driver-open": Outcome.single(sum(len(one.violations) for one in lying), note=note),
        "co-driver-stuck": Outcome.single(sum(one.stuck for one in lying), note=note),
        "co-driver-served": Outcome.single(served / asked, note=f"{len(honest)} interleavings"),
        "co-driver-switch": Outcome.single(
            statistics.median(costs), note="costs of single steps are assumed"
        ),
    }
