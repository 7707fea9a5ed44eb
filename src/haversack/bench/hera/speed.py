"""What a decision of the router takes, over states of real episodes; the step it decides about beside it."""

from __future__ import annotations

import time

from haversack.bench._harness import MIN_PAIRS, Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.hera._bench import METHOD, bench
from haversack.share._hera_agents import Scorer, walkthrough
from haversack.share._hera_household import Household
from haversack.share._hera_router import StepRouter

STATES = 300


@bench.measure(
    Row(
        "overhead",
        "the router's decision, over choosing an action with the small device agent",
        "ms a step",
        "time",
        Bar("<=", 2.0),
        judged="ours",
        published="61 ms",
        quick=True,
    ),
    seconds=20,
    quick_seconds=10,
)
def overhead(run: Run) -> Outcomes:
    begin = (run.seed % 1_000_000) * 1000
    states = [state for at in range(80) for state, _ in walkthrough(Household(begin + at))][:STATES]
    router = StepRouter(METHOD, run.seed)
    device = Scorer.learn([Household(begin + 500 + at) for at in range(10)], seed=run.seed, epochs=1)

    def routing() -> float:
        began = time.perf_counter()
        for state in states:
            router.route(state)
        return 1000 * (time.perf_counter() - began) / len(states)

    def acting() -> float:
        device.forget()
        began = time.perf_counter()
        for state in states:
            device.act(state)
        return 1000 * (time.perf_counter() - began) / len(states)

    taken = run.interleave({"router": routing, "device agent": acting}, MIN_PAIRS)
    return {
        "overhead": Outcome.of(taken, ours="router", baseline="device agent", note=f"{len(states)} states")
    }
