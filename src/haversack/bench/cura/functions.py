"""Five functions: the numbers of the smallest CURA that does as well as the best MLP of at most 1e5
numbers."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.cura._bench import bench, error, mlp, targets
from haversack.models.series.cura_estimators import CuraClassifier, CuraRegressor

NAMES = ("chirp", "friedman-1", "friedman-2", "friedman-3", "spirals")
WIDTHS = (16, 64, 256)
SIZES = ((4, 1), (4, 2), (6, 1), (4, 3), (6, 2), (8, 1))
"""Width and cells of those that are tried; those of more than 300 numbers are passed over."""
LIMIT, NEAR = 300, 1.1


@functools.cache
def fitted(name: str, width: int, blocks: int, **changed: Any) -> Any:
    """CURA on one of the targets."""
    task = next(one for one in targets() if one.name == name)
    kind = CuraClassifier if task.classes else CuraRegressor
    return kind(width, blocks, steps=2000, restarts=5, **changed).fit(task.x, task.y)


def fraction(name: str) -> tuple[int, int, float, float, bool]:
    """(numbers of CURA, of the MLP, error of CURA, of the MLP, whether the first is as good): the smallest
    that is, else the best one."""
    task = next(one for one in targets() if one.name == name)
    best = min((mlp(name, width) for width in WIDTHS), key=lambda one: one.held_out)
    goal = error(task, best.made)
    tried = []
    for width, blocks in SIZES:
        model = fitted(name, width, blocks)
        count = model.count()["learned"]
        if count <= LIMIT:
            tried.append((count, error(task, model.predict(task.test_x))))
    good = [one for one in sorted(tried) if one[1] <= NEAR * goal]
    count, found = good[0] if good else min(tried, key=lambda one: one[1])
    return count, best.numbers, found, goal, bool(good)


@bench.measure(
    *[
        Row(
            f"numbers-{name}",
            f"{name}: learned numbers of the smallest CURA of at most 300 that is within 10 % of the best "
            "MLP of at "
            "most 1e5",
            "numbers",
            "bytes",
            published="up to 2,500x fewer",
        )
        for name in NAMES
    ],
    Row(
        "targets-at-50x",
        "targets of five where CURA is as good with a fiftieth of the numbers",
        "targets",
        "quality",
        Bar(">=", 3),
        judged="ours",
        published="up to 2,500x fewer",
    ),
    seconds=900,
)
def fractions(run: Run) -> Outcomes:
    found: dict[str, Outcome] = {}
    enough, largest = 0, 0.0
    for name in NAMES:
        run.say(name)
        ours, other, missed, goal, good = fraction(name)
        verdict = "as good" if good else "not as good: the best of at most 300 numbers is shown"
        found[f"numbers-{name}"] = Outcome.single(
            ours,
            other,
            name="CURA",
            against="ReLU MLP",
            note=f"error {missed:.4g} beside {goal:.4g}, {verdict}",
        )
        enough += good and other >= 50 * ours
        largest = max(largest, other / ours if good else 0.0)
    found["targets-at-50x"] = Outcome.single(enough, note=f"the largest ratio found is {largest:.0f}")
    return found


ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gate": ("the gate open", {"gate": False}),
    "residual": ("no residual", {"residual": False}),
    "clip": ("ReLU for the clipper", {"clip": "relu"}),
}


@bench.measure(
    *[
        Row(
            f"without-{name}",
            f"the error with {words} is at least 5 % greater, the geometric mean over the five targets",
            "error over the whole's",
            "quality",
            Bar(">=", 1.05),
            judged="ours",
        )
        for name, (words, _) in ABLATIONS.items()
    ],
    seconds=240,
)
def ablations(run: Run) -> Outcomes:
    found = {}
    for name, (_, changed) in ABLATIONS.items():
        ratios = {}
        for task in targets():
            whole, less = (fitted(task.name, 6, 3, **more) for more in ({}, changed))
            errors = [max(error(task, one.predict(task.test_x)), 1e-4) for one in (less, whole)]
            ratios[task.name] = errors[0] / errors[1]
        mean = float(np.exp(np.mean(np.log(list(ratios.values())))))
        note = ", ".join(f"{one} {ratio:.2f}" for one, ratio in ratios.items())
        found[f"without-{name}"] = Outcome.single(
            mean, name="geometric mean", note=f"6 units, 3 cells: {note}"
        )
    return found


@bench.measure(
    Row(
        "chirp-quick",
        "the chirp: the error of 109 numbers over that of an MLP of 4,353",
        "MSE",
        "quality",
        quick=True,
    ),
    Row("chirp-numbers", "learned numbers of both", "numbers", "bytes", quick=True),
    seconds=40,
    quick_seconds=35,
)
def one(run: Run) -> Outcomes:
    task = targets()[0]
    model, other = fitted("chirp", 4, 2), mlp("chirp", 64)
    ours, theirs = error(task, model.predict(task.test_x)), error(task, other.made)
    return {
        "chirp-quick": Outcome.single(ours, theirs, name="CURA", against="ReLU MLP"),
        "chirp-numbers": Outcome.single(
            model.count()["learned"], other.numbers, name="CURA", against="ReLU MLP"
        ),
    }
