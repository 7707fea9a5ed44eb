"""A trained network meets pictures turned by 45 degrees and learns from 1,024 of them.

It is trained upright by backpropagation at the rate that serves it best, once for each seed. Adapting has its
own grid, tried on turned pictures kept for choosing; turned pictures that were never seen judge.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.elasticzo import _data
from haversack.bench.elasticzo._arms import TUNING_SEED, accuracy, network, train
from haversack.bench.elasticzo._bench import bench
from haversack.train.networks.layered import LayeredNetwork

UPRIGHT_STEPS, STEPS, SEEDS = 300, 300, (0, 1, 2)
UPRIGHT_RATE, DEGREES, SAMPLES = 0.1, 45.0, 1024
GRID = tuple(
    (f"elasticzo:backprop_layers=2,share={share}", rate)
    for rate in (0.02, 0.05, 0.1)
    for share in (0.003, 0.01)
)


def copy_of(found: Any) -> LayeredNetwork:
    """Another network with the same numbers."""
    return LayeredNetwork(found.network, found.classes, found.tensors())


@bench.measure(
    Row(
        "rotated-45",
        "LeNet-5, trained upright, gains at least 10 points on digits turned by 45 degrees from 1,024 of "
        "them, by ElasticZO with the last 2 by the way back",
        "points",
        "quality",
        Bar(">=", 10.0),
        judged="ours",
    ),
    seconds=90,
)
def rotated(run: Run) -> Outcomes:
    data = _data.digits()
    learn, choose, judge = (
        (_data.turned(pictures, DEGREES), labels)
        for pictures, labels in (data.learn, data.choose, data.judge)
    )
    learn = learn[0][:SAMPLES], learn[1][:SAMPLES]

    def upright(seed: int) -> Any:
        found = network(data, seed)
        train(found, data.learn, "backprop", UPRIGHT_RATE, UPRIGHT_STEPS, seed)
        return found

    start, tried = upright(TUNING_SEED), {}
    for method, rate in GRID:
        run.say(f"adapting: trying {method} at {rate:g}")
        found = copy_of(start)
        train(found, learn, method, rate, STEPS // 2, TUNING_SEED)
        tried[method, rate] = accuracy(found, choose)
    method, rate = max(tried, key=lambda pair: tried[pair])
    before, after, straight = [], [], []
    for seed in SEEDS:
        run.say(f"adapting: seed {seed}")
        found = upright(seed)
        straight.append(accuracy(found, data.judge))
        before.append(accuracy(found, judge))
        train(found, learn, method, rate, STEPS, seed)
        after.append(accuracy(found, judge))
    grid = ", ".join(f"{name} at {value:g}: {score:.1f}" for (name, value), score in tried.items())
    note = (
        f"upright {np.median(straight):.1f} %, turned before {np.median(before):.1f} %, after "
        f"{np.median(after):.1f} %; {STEPS} steps; grid {grid}; taken {method} at {rate:g}"
    )
    gains = tuple(b - a for a, b in zip(before, after, strict=True))
    return {"rotated-45": Outcome(Side("after less before", gains), note=note)}
