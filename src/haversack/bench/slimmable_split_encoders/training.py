"""What the ensemble gives up against encoders for one mode each, and what each part of its training gives."""

from __future__ import annotations

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.slimmable_split_encoders._bench import bench, table, told
from haversack.share._split_data import digits
from haversack.share.slimmable import Slimmable

CORNERS = ((1, 1), (1, 4), (4, 1), (4, 4))
LEAST = 0.1
"""Points that a part of the method must be worth, so that its loss is one."""


def _ablation(run: Run, name: str) -> Outcome:
    from haversack.bench.slimmable_split_encoders._students_torch import ablated

    ours = table(run)
    found = ablated(run, name, tuple(ours))
    lost = float(np.mean([ours[mode] - found[mode] for mode in found]))
    corners = ", ".join(f"{mode}: {ours[mode] - found[mode]:+.1f}" for mode in CORNERS)
    return Outcome.single(lost, note=f"mean over the modes; lost at {corners}; without it {told(found)}")


def _row(name: str, claim: str) -> Row:
    return Row(f"without-{name}", claim, "points", "quality", Bar(">=", LEAST), judged="ours")


@bench.measure(
    _row("mode-norms", "mAP@0.5 lost with one set of statistics for all modes, taken anew over all of them"),
    seconds=90,
)
def without_mode_norms(run: Run) -> Outcomes:
    return {"without-mode-norms": _ablation(run, "mode-norms")}


@bench.measure(
    Row(
        "below-statics",
        "greatest mAP@0.5 that a static encoder of k members and four bits has more than the mode (k, 4)",
        "points",
        "quality",
        Bar("<=", 1.0),
        judged="ours",
    ),
    seconds=400,
)
def statics(run: Run) -> Outcomes:
    from haversack.bench.slimmable_split_encoders._students_torch import static

    ours = table(run)
    theirs: dict[tuple[int, int], float] = {}
    for k in range(1, 5):
        theirs |= static(run, k)
    worst = max(theirs[mode] - ours[mode] for mode in theirs)
    pairs = ", ".join(f"k={k}: {theirs[k, 4]:.1f} and ours {ours[k, 4]:.1f}" for k in range(1, 5))
    return {"below-statics": Outcome.single(worst, note=f"static {pairs}")}


@bench.measure(
    _row("gains", "mAP@0.5 lost with equal gains in place of 1, 2, 1, 0.5"),
    seconds=300,
)
def without_gains(run: Run) -> Outcomes:
    return {"without-gains": _ablation(run, "gains")}


@bench.measure(
    _row("sandwich", "mAP@0.5 lost when every step draws all of its modes"),
    seconds=300,
)
def without_sandwich(run: Run) -> Outcomes:
    return {"without-sandwich": _ablation(run, "sandwich")}


@bench.measure(
    Row(
        "digits",
        "the same for a classifier: accuracy of (4, 4) on held-out digits over its teacher's",
        "share",
        "quality",
        Bar(">=", 0.95),
    ),
    seconds=200,
)
def classifier(run: Run) -> Outcomes:
    from haversack.share._split_train_torch import train_split

    known, held = digits(48)
    trained = train_split(known, held, Slimmable(teacher_steps=200, steps=150), say=run.say)
    share = {mode: 100 * value for mode, value in trained.table.items()}
    note = f"{told(share)}; 48 x 48, {len(held)} digits held out"
    ours, whole = trained.table[4, 4], trained.teacher_quality
    return {"digits": Outcome.single(ours, whole, against="its teacher", note=note)}
