"""Sparse updates: the 99.84 KiB scheme of mcunet beside the last 12 layers, and whole updates over rates.

Without momentum, as the memory figures count; 32 rows a step, 8 epochs, both rates tuned for each side on
pictures that no row is judged on; three seeds. Whole updates of all 42 layers are shown over their rates, on
fewer pictures: what the specification calls divergence depends on the rate.
"""

from __future__ import annotations

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.tiny_training_256kb import _arms
from haversack.bench.tiny_training_256kb._arms import Arm, Task, task, trained
from haversack.bench.tiny_training_256kb._bench import PUBLISHED, bench
from haversack.bench.tiny_training_256kb.scaling import differences, scores, shown
from haversack.train.parameters.sparse import Scheme

HEAD_RATES = (0.03, 0.1)
RATES = (0.003, 0.01, 0.03)
SPARSE = Arm("sparse, 99.84 KiB", "qas", PUBLISHED["mcunet"]["100"][0], 0.0, RATES)
LAST_12 = Arm("last 12", "qas", Scheme.last(12, 42), 0.0, RATES)
FULL = Arm("all layers", "qas", Scheme.last(42, 42), 0.0, (0.003, 0.03, 0.3))


@bench.measure(
    Row(
        "sparse-accuracy",
        "the 99.84 KiB scheme at most 1 point below the last 12 layers (448.05 KiB)",
        "points",
        "quality",
        Bar(">=", -1.0),
        judged="ours",
        published="flowers-102: 88.84 % beside 87.74 %",
    ),
    Row("sparse-best", "accuracy of the scheme, beside the last 12 layers", "%", "quality"),
    seconds=900,
)
def sparse(run: Run) -> Outcomes:
    names = ["tune", "validation", *(f"seed{n}" for n in range(_arms.SEEDS)), "test"]
    ours, accuracies = scores(run, SPARSE, task(run, 20, names), HEAD_RATES)
    theirs, others = scores(run, LAST_12, task(run, 30, names), HEAD_RATES)
    return {
        "sparse-accuracy": Outcome(
            Side("sparse less last 12", differences(accuracies, others)),
            note=f"sparse {shown(accuracies)}; last 12 {shown(others)}",
        ),
        "sparse-best": Outcome(
            Side("sparse", accuracies),
            Side("last 12", others),
            f"sparse: {ours.shown()}; last 12: {theirs.shown()}",
        ),
    }


@bench.measure(
    Row(
        "full-update",
        "all 42 layers learn: accuracy at the largest rate, beside the smallest",
        "%",
        "quality",
        published="flowers-102: diverges to 1.09 %",
    ),
    seconds=150,
)
def full(run: Run) -> Outcomes:
    known = _arms.pictures()
    few = {"validation": known.sets["validation"][::3], "test": known.sets["test"][::10]}
    work = task(run, 0, list(few), _arms.Pictures(known.files, known.labels, few))
    found = {rate: _full_at(work, rate, run) for rate in FULL.rates}
    note = "; ".join(f"rate {rate:g}: {value:.1f} %" for rate, value in found.items())
    least, most = min(found), max(found)
    return {
        "full-update": Outcome.single(
            found[most], found[least], name=f"rate {most:g}", against=f"rate {least:g}", note=note
        )
    }


def _full_at(work: Task, rate: float, run: Run) -> float:
    run.say(f"all layers: rate {rate:g}")
    return 100 * trained(FULL, work, "validation", "test", rate, HEAD_RATES[0], 0)
