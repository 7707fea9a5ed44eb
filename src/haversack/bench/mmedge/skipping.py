"""The gate that stops the camera, beside stopping where the answer so far is confident, over recordings of
the test. The cut of either is chosen on other recordings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.mmedge._bench import (
    LARGEST,
    NETWORK,
    QUICK,
    TEST,
    Answers,
    answers,
    bench,
    model,
    points,
    test_answers,
)

WATCHED = (*NETWORK, "bench/mmedge/_bench.py", "bench/mmedge/skipping.py", "sense/_pipeline_window.py")
F64 = NDArray[np.float64]


def exits(sure: F64, right: NDArray[np.bool_], frames: NDArray[np.int64], cut: float) -> tuple[float, float]:
    """(accuracy, mean frames) of stopping at the first place [places, n] that is at least `cut` sure; `right`
    and `frames` have the whole window as their last place."""
    answer, used = right[-1].copy(), np.full(right.shape[1], frames[-1], np.float64)
    for place in range(len(sure) - 1, -1, -1):
        stopped = sure[place] >= cut
        answer = np.where(stopped, right[place], answer)
        used = np.where(stopped, frames[place], used)
    return float(answer.mean()), float(used.mean())


def cut_for(sure: F64, right: NDArray[np.bool_], frames: NDArray[np.int64], wanted: float) -> float:
    """The cut whose mean frames come nearest to `wanted`."""
    cuts = np.unique(np.quantile(sure, np.linspace(0, 1, 400)))
    used = [exits(sure, right, frames, float(cut))[1] for cut in cuts]
    return float(cuts[int(np.argmin(np.abs(np.array(used) - wanted)))])


def sides(found: Answers) -> tuple[F64, F64, NDArray[np.bool_], NDArray[np.int64]]:
    """(gate [3, n], confidence [3, n], right [4, n], frames [4]) with the largest networks."""
    gate = np.stack([found.stop(LARGEST, place) for place in range(3)]).astype(np.float64)
    sure = np.stack([found.probabilities(LARGEST, place).max(1) for place in range(3)]).astype(np.float64)
    right = np.stack([found.right(LARGEST, place) for place in range(4)])
    return gate, sure, right, np.array(found.places(LARGEST.rate))


@bench.measure(
    Row(
        "skip-frames",
        "frames encoded with the gate over all planned",
        "frames",
        "bytes",
        Bar("<=", 0.75),
        quick=True,
    ),
    Row(
        "skip-loss",
        "accuracy with the gate less that of whole windows",
        "percentage points",
        "quality",
        Bar(">=", -0.5),
        judged="ours",
        quick=True,
    ),
    Row(
        "skip-over-confidence",
        "accuracy with the gate less that of stopping by confidence alone at as many frames",
        "percentage points",
        "quality",
        Bar(">=", 1.0),
        judged="ours",
    ),
    seconds=90,
    quick_seconds=25,
    watches=WATCHED,
)
def gate(run: Run) -> Outcomes:
    sure, confidence, right, frames = sides(test_answers(run))
    accuracy, used = exits(sure, right, frames, model().shape.gate_cut)
    whole = float(right[-1].mean())
    note = f"accuracy {accuracy:.4f}, of whole windows {whole:.4f}; cut {model().shape.gate_cut}"
    found = {
        "skip-frames": Outcome.single(used, float(frames[-1]), name="gate", against="all", note=note),
        "skip-loss": Outcome.single(points(accuracy - whole), note=note),
    }
    if run.quick:
        return found
    other = sides(answers(TEST, 900_000 + run.seed % 1000))
    _, wanted = exits(other[0], other[2], other[3], model().shape.gate_cut)
    cut = cut_for(other[1], other[2], other[3], wanted)
    rival, rivals = exits(confidence, right, frames, cut)
    found["skip-over-confidence"] = Outcome.single(
        points(accuracy - rival),
        note=f"gate {accuracy:.4f} at {used:.1f} frames, confidence {rival:.4f} at {rivals:.1f}; cuts "
        "chosen elsewhere",
    )
    return found


assert QUICK < TEST
