"""L4: a router that learns under a budget keeps it, on questions that it has not seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.llms_over_networks import _models as toys
from haversack.bench.llms_over_networks._bench import NETWORK, bench
from haversack.bench.llms_over_networks.vertical import COSTS, answered
from haversack.share.collaboration.learning import LagrangianRouter

WATCHED = (*NETWORK, "bench/llms_over_networks/learned.py", "share/collaboration/learning.py")
F64 = NDArray[np.float64]
BUDGETS = (4.0, 7.0, 11.0)


@bench.measure(
    Row(
        "l4-budget",
        "L4, the farthest that the mean cost on new questions is from its budget, of budgets 4, 7 and 11",
        "part of the budget",
        "quality",
        Bar("<=", 0.05),
        judged="ours",
        quick=True,
    ),
    Row(
        "l4-quality",
        "L4, answers right, over random routing at the same cost (budget 7)",
        "answers right",
        "quality",
        quick=True,
    ),
    seconds=40,
    quick_seconds=15,
    watches=WATCHED,
)
def budget(run: Run) -> Outcomes:
    """Contexts are the question's function; the device costs 1, the cloud 20. New questions come in fifties,
    each decided before it is learned from."""

    def told(count: int, seed: int) -> tuple[F64, F64]:
        texts, answers, device, cloud = answered(count, seed)
        x = toys.list_features(texts)[:, : len(toys.FUNCTIONS)]
        right = np.stack([rows.argmax(1) == answers for rows in (device, cloud)], 1).astype(np.float64)
        return np.concatenate([x, np.ones((count, 1))], 1), right

    x, quality = told(1500, 3)
    fresh, truth = told(600 if run.quick else 2400, 1000 + run.seed % 100_000)
    rng = np.random.default_rng(run.seed)
    far, notes, picked = [], [], None
    for limit in BUDGETS:
        router = LagrangianRouter(x.shape[1], COSTS, limit, eta=0.005, seed=run.seed)
        for _ in range(6000):
            at = rng.integers(0, len(x), 128)
            router.learn(x[at], quality[at])
        p = np.concatenate(
            [_played(router, fresh[at : at + 50], truth[at : at + 50]) for at in range(0, len(fresh), 50)]
        )
        cost = float((COSTS[0] + p * (COSTS[1] - COSTS[0])).mean())
        far.append(abs(cost - limit) / limit)
        notes.append(f"{limit:g}: {cost:.2f}")
        if limit == 7.0:
            right = float(((1 - p) * truth[:, 0] + p * truth[:, 1]).mean())
            share = float(p.mean())
            picked = (right, float((1 - share) * truth[:, 0].mean() + share * truth[:, 1].mean()))
    assert picked is not None
    return {
        "l4-budget": Outcome(Side("budget - cost", (max(far),)), None, "; ".join(notes)),
        "l4-quality": Outcome.single(picked[0], picked[1], name="L4", against="random"),
    }


def _played(router: LagrangianRouter, x: F64, quality: F64) -> F64:
    """P(cloud) of new questions; then it learns from them."""
    p = router.p(x)
    router.learn(x, quality)
    return p
