"""Quantization-aware scaling: the last 6 layers of mcunet learn CIFAR-10 in integers with it, without it, and
in floats.

All arms have the same frozen features, momentum 0.9, 32 rows a step, 8 epochs, and rates of their own for the
8-bit layers and the classifier, chosen on pictures that no row is judged on. Integers are kept finer between
steps and rounded in every pass, as in the reference code; one arm stores them rounded, as a device does.
Every figure is the median over three seeds, each with its own pictures, order and first classifier.
"""

from __future__ import annotations

import statistics

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.tiny_training_256kb import _arms
from haversack.bench.tiny_training_256kb._arms import Arm, Task, Tuned, task, trained, tuned
from haversack.bench.tiny_training_256kb._bench import bench
from haversack.train.parameters.sparse import Scheme

LAST_6 = Scheme.last(6, 42)
HEAD_RATES = (0.01, 0.03, 0.1)
ARMS = {
    "qas": Arm("QAS", "qas", LAST_6, 0.9, (0.001, 0.003, 0.005, 0.01)),
    "plain": Arm("no QAS", "plain", LAST_6, 0.9, (0.01, 1.0, 10.0, 30.0, 100.0, 1e3, 1e4)),
    "float": Arm("float", "float", LAST_6, 0.9, (0.001, 0.003, 0.005, 0.01)),
    "stored": Arm("QAS, stored in int8", "qas", LAST_6, 0.9, (0.001, 0.003, 0.005), latent="int8"),
    "head": Arm("classifier alone", "head", LAST_6, 0.9, (0.01,)),
}
PUBLISHED = "flowers-102: 84.3 % without, 88.1 % with"


def scores(run: Run, arm: Arm, work: Task, head_rates: tuple[float, ...]) -> tuple[Tuned, tuple[float, ...]]:
    """The tuned rates of an arm and its accuracy in % on the test part, for each seed."""
    best = tuned(arm, work, head_rates, run.say)
    found = []
    for seed in range(_arms.SEEDS):
        run.say(f"{arm.name}: seed {seed}")
        share = trained(arm, work, f"seed{seed}", "test", best.rate, best.head_rate, seed)
        found.append(100 * share)
    return best, tuple(found)


def differences(ours: tuple[float, ...], theirs: tuple[float, ...]) -> tuple[float, ...]:
    """Seed by seed."""
    return tuple(a - b for a, b in zip(ours, theirs, strict=True))


def shown(values: tuple[float, ...]) -> str:
    """Accuracies as a note has them."""
    return ", ".join(f"{value:.1f}" for value in values)


@bench.measure(
    Row(
        "qas-gain",
        "with scaling at least 2 points more than without, each at its best rates",
        "points",
        "quality",
        Bar(">=", 2.0),
        judged="ours",
        published=PUBLISHED,
    ),
    Row(
        "qas-float",
        "with scaling within 2 points of the same layers in floats",
        "points",
        "quality",
        Bar(">=", -2.0),
        judged="ours",
    ),
    Row("qas-best", "accuracy with scaling, beside none, both at their best", "%", "quality"),
    Row("plain-best", "accuracy without scaling at its best rates, beside the classifier alone", "%",
        "quality"),
    Row("stored", "accuracy when every step is stored in int8, beside finer numbers between steps", "%",
        "quality"),
    seconds=850,
)  # fmt: skip
def scaling(run: Run) -> Outcomes:
    work = task(run, 36, ["tune", "validation", *(f"seed{n}" for n in range(_arms.SEEDS)), "test"])
    found = {
        name: scores(run, arm, work, HEAD_RATES if name != "stored" else HEAD_RATES[1:2])
        for name, arm in ARMS.items()
    }
    (qas, with_it), (plain, without), (real, floats) = (found[name] for name in ("qas", "plain", "float"))
    head, alone = found["head"]
    device, stored = found["stored"]
    gain = differences(with_it, without)
    return {
        "qas-gain": Outcome(
            Side("QAS less no QAS", gain), note=f"QAS {shown(with_it)}; no QAS {shown(without)}"
        ),
        "qas-float": Outcome(
            Side("QAS less float", differences(with_it, floats)),
            note=f"float {shown(floats)}; {real.shown()}",
        ),
        "qas-best": Outcome(Side("QAS", with_it), Side("no QAS", without), qas.shown()),
        "plain-best": Outcome(
            Side("no QAS", without), Side("classifier alone", alone), f"{plain.shown()}; alone {head.shown()}"
        ),
        "stored": Outcome(Side("int8", stored), Side("finer", with_it), device.shown()),
    }


@bench.measure(
    Row(
        "qas-quick",
        "a short look: few pictures, fixed rates, with scaling beside none at the same rate",
        "%",
        "quality",
        Bar(">=", 1.0),
        quick=True,
    ),
    seconds=40,
    quick_seconds=35,
)
def quick_scaling(run: Run) -> Outcomes:
    drawn = _arms.pictures(20, run.seed if run.quick else 0)
    work = task(run, 36, ["validation", "test"], drawn)
    sides = {
        name: [100 * trained(ARMS[name], work, "validation", "test", 0.003, 0.03, seed) for seed in range(2)]
        for name in ("qas", "plain")
    }
    note = f"{len(work.labels['validation'])} pictures to learn from, {len(work.labels['test'])} to judge"
    middle = {name: statistics.median(values) for name, values in sides.items()}
    return {"qas-quick": Outcome.single(middle["qas"], middle["plain"], against="no QAS", note=note)}
