"""What the ensemble gives up against encoders for one mode each, what each part of its training gives, and
its predecessor, all of them after the same short training; and a classifier, whole."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.slimmable_split_encoders._bench import SHIPPED, bench, told
from haversack.models.vision.slimmable import payload_bytes
from haversack.share._split_data import digits
from haversack.share.slimmable import Mode, Slimmable

MODES = tuple((k, b) for k in range(1, 5) for b in (1, 4))
"""Those that the ablations are measured at: every width, fewest and most bits."""
WATCHED = (
    *SHIPPED,
    "models/vision/width_slimmable_torch.py",
    "share/_split_train_torch.py",
    "bench/slimmable_split_encoders/training.py",
    "bench/slimmable_split_encoders/_students_torch.py",
)
LEAST = 0.1
"""Points that a part of the method must be worth, so that its loss is one."""


def _lost(whole: Mapping[Mode, float], without: Mapping[Mode, float], note: str) -> Outcome:
    lost = statistics.mean(whole[mode] - without[mode] for mode in without)
    return Outcome.single(lost, note=f"mean over the modes of 1 and 4 bits; {note}")


def _ablation(run: Run, name: str) -> Outcome:
    from haversack.bench.slimmable_split_encoders._students_torch import STEPS, ablated, ensemble

    whole, without = ensemble(run, MODES), ablated(run, name, MODES)
    return _lost(whole, without, f"{STEPS} steps each; with it {told(whole)}, without {told(without)}")


def _row(name: str, claim: str) -> Row:
    return Row(f"without-{name}", claim, "points", "quality", Bar(">=", LEAST), judged="ours")


@bench.measure(
    _row("mode-norms", "mAP@0.5 lost with one set of statistics for all modes, taken anew over all of them"),
    seconds=60,
    watches=WATCHED,
)
def without_mode_norms(run: Run) -> Outcomes:
    from haversack.bench.slimmable_split_encoders import _students_torch

    whole, without = _students_torch.without_mode_norms(run, MODES)
    note = f"the shipped network {told(whole)}, with shared statistics {told(without)}"
    return {"without-mode-norms": _lost(whole, without, note)}


@bench.measure(
    Row(
        "below-statics",
        "greatest mAP@0.5 that a static encoder of k members and four bits has more than the mode (k, 4) "
        "after as many steps",
        "points",
        "quality",
        Bar("<=", 1.0),
        judged="ours",
    ),
    Row(
        "over-predecessor",
        "mAP@0.5 of (4, 4) less that of the width-slimmable predecessor at as many bytes (3 channels of 8 "
        "bits), after as many steps",
        "points",
        "quality",
        judged="ours",
        published="36.8 mAP and 266 ms, and 35.3 mAP and 1,404 ms",
    ),
    seconds=700,
    watches=WATCHED,
)
def statics(run: Run) -> Outcomes:
    from haversack.bench.slimmable_split_encoders._students_torch import (
        STEPS,
        ensemble,
        predecessor,
        static,
    )
    from haversack.models.vision._slim_record import member, products
    from haversack.models.vision.width_slimmable_torch import products as dense

    ours = ensemble(run, MODES)
    theirs: dict[Mode, float] = {}
    for k in range(1, 5):
        theirs |= static(run, k)
    worst = max(theirs[mode] - ours[mode] for mode in theirs)
    pairs = ", ".join(f"k={k}: {theirs[k, 4]:.1f} and ours {ours[k, 4]:.1f}" for k in range(1, 5))
    before = predecessor(run, ((3, 8), (12, 8)))
    work = dense(96) / (4 * products(member(), 96)[0])
    told_ = (
        f"{STEPS} steps each; ours {ours[4, 4]:.1f} with {payload_bytes(4, 96)} bytes; the predecessor "
        f"{before[3, 8]:.1f} with as many, {before[12, 8]:.1f} with four times as many, at {work:.2f} times "
        "the multiplications of four members whatever it sends"
    )
    return {
        "below-statics": Outcome.single(worst, note=f"{STEPS} steps each; static {pairs}"),
        "over-predecessor": Outcome.single(ours[4, 4] - before[3, 8], note=told_),
    }


@bench.measure(
    _row("gains", "mAP@0.5 lost with equal gains in place of 1, 2, 1, 0.5"),
    seconds=130,
    watches=WATCHED,
)
def without_gains(run: Run) -> Outcomes:
    return {"without-gains": _ablation(run, "gains")}


@bench.measure(
    _row("sandwich", "mAP@0.5 lost when every step draws all of its modes"),
    seconds=130,
    watches=WATCHED,
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
    seconds=180,
    watches=WATCHED,
)
def classifier(run: Run) -> Outcomes:
    from haversack.share._split_train_torch import train_split

    known, held = digits(48)
    trained = train_split(known, held, Slimmable(teacher_steps=200, steps=300, rows=16), say=run.say)
    share = {mode: 100 * value for mode, value in trained.table.items()}
    note = f"{told(share)}; 48 x 48, {len(held)} digits held out"
    ours, whole = trained.table[4, 4], trained.teacher_quality
    return {"digits": Outcome.single(ours, whole, against="its teacher", note=note)}
