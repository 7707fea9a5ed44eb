"""Orders of planes in simulated time: random layers, the planes' times in a ratio that is given.

A layer: 32 tokens choose two of eight experts, some experts more often than others, and a level of each, as
the paper's first capacity has it (.3/.4/.3). A plane takes time to read in the ratio of its bits, and to
compute for each token that needs it. One reader, one processor; nothing is there before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Side
from haversack.bench.d2moe._bench import bench
from haversack.run.residency.d2moe import MOST_TRIED, demand, makespan, schedule

I64 = NDArray[np.int64]
EXPERTS, TOP, TOKENS, SHARES = 8, 2, 32, (0.3, 0.4, 0.3)
LOADS = (2.25, 1.125, 1.125)
BALANCED = 1.3
"""Reading over computing in the paper's motive: 2.6 s to 2.04 s."""
RATIOS = {"balanced": BALANCED, "reading": 6.0, "computing": 0.2}
LAYERS, QUICK_LAYERS, SMALL, SERIES = 400, 60, 10, MIN_PAIRS
Played = Mapping[str, Mapping[str, list[tuple[float, float]]]]


def layer(rng: np.random.Generator, experts: int = EXPERTS, tokens: int = TOKENS) -> tuple[I64, I64]:
    """Tokens that need each plane, and those whose level it is, i64 [experts, planes] both."""
    chances = rng.dirichlet(np.full(experts, 2.0))
    chosen = np.stack(
        [rng.choice(experts, min(TOP, experts), replace=False, p=chances) for _ in range(tokens)]
    )
    levels = rng.choice(len(SHARES), chosen.shape, p=SHARES)
    given = (chosen.astype(np.int32), levels.astype(np.int32), experts, len(SHARES))
    return demand(*given), demand(*given, nested=False)


def times(needs: I64, ratio: float) -> tuple[Sequence[float], Sequence[float]]:
    """Seconds to read each plane, and to compute it for a token, whose sums have the `ratio`."""
    reading = float((needs > 0).sum(axis=0) @ np.array(LOADS))
    computing = float(needs.sum(axis=0) @ np.array(LOADS))
    return LOADS, [one * reading / (ratio * computing) for one in LOADS]


def bound(needs: I64, load_s: Sequence[float], compute_s: Sequence[float]) -> float:
    """What no order beats: all reading and the least computing after it, or the other way round."""
    items = [(int(e), int(p)) for e, p in np.argwhere(needs)]
    loads = [load_s[plane] for _, plane in items]
    computes = [float(needs[item]) * compute_s[item[1]] for item in items]
    return max(sum(loads) + min(computes), min(loads) + sum(computes))


@cache
def played(ratio: float, count: int, seed: int) -> dict[str, list[tuple[float, float]]]:
    """Order -> (seconds, seconds waited) of each of `count` layers; `bound` has no waiting."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[float, float]]] = {"id-order": [], "hebf": [], "raw": [], "bound": []}
    for _ in range(count):
        needs, exact = layer(rng)
        given = times(needs, ratio)
        for name, order, heat in (
            ("id-order", "id-order", None),
            ("hebf", "hebf", None),
            ("raw", "hebf", exact),
        ):
            found[name].append(makespan(schedule(needs, order, heat=heat), needs, *given))
        found["bound"].append((bound(needs, *given), 0.0))
    return found


@bench.measure(
    Row(
        "hebf-not-worse",
        "share of random layers in which HEBF ends no later than the order of numbers",
        "share",
        "time",
        Bar(">=", 0.99),
        judged="ours",
        quick=True,
    ),
    Row(
        "hebf-bound",
        "mean time of HEBF over what no order beats, where reading and computing are balanced",
        "times",
        "time",
        Bar("<=", 1.02),
        judged="ours",
        quick=True,
    ),
    Row(
        "hebf-balanced",
        f"throughput of HEBF beside the order of numbers, reading {BALANCED} times as long as computing",
        "layers/time",
        "time",
        Bar(">=", 1.04),
        published="1.11-1.21x",
        quick=True,
    ),
    Row("hebf-reading", "the same, reading 6 times as long as computing", "layers/time", "time"),
    Row("hebf-computing", "the same, computing 5 times as long as reading", "layers/time", "time"),
    Row("hebf-bubbles", "waiting of the order of numbers beside HEBF's, balanced", "seconds", "time"),
    Row(
        "hebf-raw",
        "throughput of the heat as published beside the order of numbers, balanced",
        "layers/time",
        "time",
    ),
    Row(
        "hebf-optimum",
        f"time of HEBF over the best order, layers of at most {MOST_TRIED} planes, balanced",
        "times",
        "time",
        judged="ours",
    ),
    seconds=60,
    quick_seconds=12,
)
def orders(run: Run) -> Outcomes:
    count = QUICK_LAYERS if run.quick else LAYERS
    note = f"{SERIES} times {count} layers of {EXPERTS} experts, {TOKENS} tokens, two experts each"
    series = [
        {name: played(ratio, count, run.seed + index) for name, ratio in RATIOS.items()}
        for index in range(SERIES)
    ]

    def rates(name: str, order: str) -> tuple[float, ...]:
        return tuple(count / sum(one for one, _ in every[name][order]) for every in series)

    def waits(order: str) -> tuple[float, ...]:
        return tuple(sum(waited for _, waited in every["balanced"][order]) for every in series)

    found = {
        "hebf-not-worse": Outcome(Side("HEBF", tuple(map(not_worse, series))), note=note),
        "hebf-bound": Outcome(
            Side("HEBF", tuple(over_bound(every["balanced"]) for every in series)), note=note
        ),
        "hebf-raw": Outcome(
            Side("raw heat", rates("balanced", "raw")), Side("by number", rates("balanced", "id-order")), note
        ),
        "hebf-bubbles": Outcome(Side("by number", waits("id-order")), Side("HEBF", waits("hebf")), note),
    }
    for name in RATIOS:
        found[f"hebf-{name}"] = Outcome(
            Side("HEBF", rates(name, "hebf")), Side("by number", rates(name, "id-order")), note
        )
    if not run.quick:
        found["hebf-optimum"] = optimum(run)
    return found


def not_worse(every: Played) -> float:
    """Share of the layers that end no later by HEBF than by number."""
    pairs = [
        (one[0], other[0])
        for found in every.values()
        for one, other in zip(found["hebf"], found["id-order"], strict=True)
    ]
    return float(np.mean([one <= other * (1 + 1e-9) for one, other in pairs]))


def over_bound(found: Mapping[str, list[tuple[float, float]]]) -> float:
    """Mean time of HEBF over what no order beats."""
    pairs = zip(found["hebf"], found["bound"], strict=True)
    return float(np.mean([one[0] / least[0] for one, least in pairs]))


def optimum(run: Run) -> Outcome:
    """HEBF beside the best of all orders of small layers."""
    ratios: list[float] = []
    rng = np.random.default_rng(run.seed)
    while len(ratios) < SERIES * SMALL:
        needs, _ = layer(rng, 3, 6)
        if np.count_nonzero(needs) > MOST_TRIED:
            continue
        load_s, compute_s = times(needs, BALANCED)
        best = schedule(needs, "optimal", load_s=load_s, compute_s=compute_s)
        took = [makespan(order, needs, load_s, compute_s)[0] for order in (schedule(needs), best)]
        ratios.append(took[0] / took[1])
    means = np.array(ratios).reshape(SERIES, SMALL).mean(axis=1)
    return Outcome(Side("HEBF", tuple(means.tolist())), note=f"worst {max(ratios):.3f}")
