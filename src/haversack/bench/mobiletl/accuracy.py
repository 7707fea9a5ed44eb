"""What learning in half the memory costs in accuracy: five new classes of CIFAR-10, 200 pictures each.

Every arm has Adam, ten epochs of sixteen pictures a step, the same pictures in the same order for a seed, and
a rate of its own from GRID, chosen with a fifth of the training pictures left out, in half of the epochs; the
test pictures choose nothing. Arms: the classifier alone, shifts alone, fine-tuning and MobileTL of k top
blocks (all: every block, the first convolution apart), TinyTL beside every block, and MobileTL without its
signed activations, or without its shift-only norms. Three seeds: classifier, order, TinyTL's branches.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from dataclasses import dataclass
from typing import Any

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.mobiletl._bench import LEARNING, bench, ours, plain
from haversack.bench.mobiletl.memory import torch_or_unavailable

GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SEEDS = (0, 1, 2)
BLOCKS = 9
DEPTHS = {"1": 1, "2": 2, "3": 3, "5": 5, "all": BLOCKS}
ARMS = {
    "last layer": "head",
    "shifts": "bias",
    "TinyTL": "tinytl",
    **{f"fine-tuning {key}": plain(depth) for key, depth in DEPTHS.items()},
    **{f"MobileTL {key}": ours(depth) for key, depth in DEPTHS.items()},
    "only shift-only norms 3": f"{ours(3)},act=exact",
    "only signed activations 3": f"{ours(3)},inner_norm=full",
}
"""Arm -> choice of the slot parameters; fine-tuning of top blocks is MobileTL's third part alone."""


@dataclass(frozen=True)
class Arm:
    """What one arm came to: its rate, the accuracy in percent by seed, KiB kept a picture of a step."""

    rate: float
    accuracy: tuple[float, ...]
    kept_kib: float

    @property
    def mean(self) -> float:
        """Of the seeds."""
        return statistics.fmean(self.accuracy)

    def text(self, name: str) -> str:
        """As notes have it."""
        return f"{name}: {self.mean:.2f} % ({self.kept_kib:.1f} KiB, rate {self.rate:g})"


def rows() -> list[Row]:
    """Accuracy at the same blocks, the front, and what stands beside."""
    found = [
        Row(
            f"accuracy-{key}",
            f"MobileTL of {key} block{'s' if depth > 1 else ''} is within 1.0 point of fine-tuning the same",
            "points below fine-tuning, by seed",
            "quality",
            Bar("<=", 1.0),
            judged="ours",
            published="0.6 points below",
        )
        for key, depth in DEPTHS.items()
    ]
    return [
        *found,
        Row(
            "pareto",
            "points of fine-tuning with less memory and more accuracy than MobileTL's curve",
            "points",
            "quality",
            Bar("==", 0),
            judged="ours",
            published="optimal on all eight sets",
        ),
        Row(
            "tinytl",
            "MobileTL of 5 blocks beside TinyTL",
            "% accuracy",
            "quality",
            published="better in six of eight sets",
        ),
        Row("last-layer", "MobileTL of 3 blocks beside the classifier alone", "% accuracy", "quality"),
        Row("shifts", "MobileTL of 3 blocks beside shifts alone", "% accuracy", "quality"),
        Row("only-norms", "shift-only norms alone beside all of MobileTL, 3 blocks", "% accuracy", "quality"),
        Row(
            "only-signs", "signed activations alone beside all of MobileTL, 3 blocks", "% accuracy", "quality"
        ),
    ]


@bench.measure(*rows(), seconds=2100, watches=LEARNING)
def accuracies(run: Run) -> Outcomes:
    """Everything, from the backbone on."""
    torch_or_unavailable()
    arms = {name: arm(run, name, SEEDS, GRID) for name in ARMS}
    return outcomes(arms)


def outcomes(arms: dict[str, Arm]) -> dict[str, Outcome]:
    """The rows from the arms."""
    grid = f"rates tried {', '.join(f'{rate:g}' for rate in GRID)}"
    found = {}
    for key in DEPTHS:
        standard, mine = arms[f"fine-tuning {key}"], arms[f"MobileTL {key}"]
        below = tuple(a - b for a, b in zip(standard.accuracy, mine.accuracy, strict=True))
        note = f"{standard.text('fine-tuning')}; {mine.text('MobileTL')}; {grid}"
        found[f"accuracy-{key}"] = Outcome(Side("fine-tuning less MobileTL", below), note=note)
    told = "; ".join(each.text(name) for name, each in arms.items())
    found["pareto"] = Outcome.single(len(above_curve(arms)), name="above", note=told)
    for row, one, other in (
        ("tinytl", "MobileTL 5", "TinyTL"),
        ("last-layer", "MobileTL 3", "last layer"),
        ("shifts", "MobileTL 3", "shifts"),
        ("only-norms", "only shift-only norms 3", "MobileTL 3"),
        ("only-signs", "only signed activations 3", "MobileTL 3"),
    ):
        first, second = (Side(name, arms[name].accuracy) for name in (one, other))
        found[row] = Outcome(first, second, f"{arms[one].text(one)}; {arms[other].text(other)}")
    return found


def curve(arms: dict[str, Arm], kept_kib: float) -> float:
    """The accuracy of MobileTL's curve where so much is kept: straight lines between the arms of its front.
    Below the first there is none to reach; what keeps more than the last has no lead in memory to lose."""
    mine = sorted((each.kept_kib, each.mean) for name, each in arms.items() if name.startswith("MobileTL"))
    front = [(kib, value) for n, (kib, value) in enumerate(mine) if all(value > one for _, one in mine[:n])]
    if kept_kib < front[0][0]:
        return -math.inf
    for (low, before), (high, after) in itertools.pairwise(front):
        if kept_kib < high:
            return before + (after - before) * (kept_kib - low) / (high - low)
    return front[-1][1] if kept_kib == front[-1][0] else math.inf


def above_curve(arms: dict[str, Arm]) -> list[str]:
    """The arms of fine-tuning that lie above MobileTL's curve."""
    return [
        name
        for name, each in arms.items()
        if name.startswith("fine-tuning") and each.mean > curve(arms, each.kept_kib)
    ]


@functools.cache
def sets(backbone: str) -> Any:
    """The task and the one for rates, with what they keep of maps, for all arms of a process."""
    from pathlib import Path

    from haversack.bench.mobiletl._transfer import tasks

    return tasks(Path(backbone))


def arm(run: Run, name: str, seeds: tuple[int, ...], grid: tuple[float, ...]) -> Arm:
    """Choose a rate, then learn with every seed. Raises Unavailable where no rate gives numbers."""
    from haversack.bench.mobiletl._backbone import backbone
    from haversack.bench.mobiletl._transfer import ROWS, kept, transfer

    task, tuning = sets(str(backbone(run.say)))
    choice = ARMS[name]
    tried = {}
    for rate in grid:
        run.say(f"{name}: rate {rate:g}")
        tried[rate] = transfer(tuning, choice, rate, seeds[0])
    usable = {rate: value for rate, value in tried.items() if math.isfinite(value)}
    if not usable:
        raise Unavailable(f"{name} gave no numbers at any of the rates {grid}")
    rate = max(usable, key=lambda one: usable[one])
    run.say(f"{name}: {len(seeds)} seeds at rate {rate:g}")
    accuracy = tuple(transfer(task, choice, rate, seed) for seed in seeds)
    return Arm(rate, accuracy, kept(task.backbone, choice, ROWS) / ROWS / 1024)
