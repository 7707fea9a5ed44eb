"""Trainings side by side: the methods and plain fine-tuning on the same rows, one front of accuracy, memory
and time.

Each arm is `haversack train fit` in a process of its own, so that its peak memory is seen from outside; all
get the same rows, epochs and seed, and each its own rate, tried on rows that it learns from. Arms that are
done are kept beside the report until it is written, so an interrupted comparison goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from haversack.core._files import remove, write_atomically
from haversack.core.budget import Budget
from haversack.core.errors import UserError
from haversack.core.memory import run_measured
from haversack.core.progress import Progress
from haversack.plan._training_report import training_report
from haversack.train._choice import Scheme, schemes
from haversack.train._training import finished, training_folder
from haversack.train.fit_labels import Prepared, Rows, Wish, prepare

PROGRAM = "import sys; from haversack.cli import main; sys.exit(main())"
WAYS_MOST = 3
"""Of one method: its first way, its last, and the middle one."""


@dataclass(frozen=True)
class Arm:
    """One training: its scheme, what `train fit --json` printed (None where it was refused, with the
    `reason`), the peak of its process."""

    scheme: Scheme
    plain: bool
    record: dict[str, Any] | None
    peak_mib: float
    reason: str | None = None

    @property
    def label(self) -> str:
        """The methods."""
        return self.scheme.label

    @property
    def accuracy(self) -> float:
        """On held-out rows, after."""
        assert self.record is not None
        found: float = self.record["held_out"]["after"]["accuracy"]
        return found


@dataclass(frozen=True)
class Front:
    """All arms, and those that no other beats in both memory and accuracy."""

    report: Path
    network: str
    arms: tuple[Arm, ...]
    best: tuple[Arm, ...] = field(default=())

    def record(self) -> dict[str, Any]:
        """As `train fit --compare --json` prints it."""
        return {
            "report": str(self.report),
            "network": self.network,
            "arms": [
                {
                    **{name: value for name, value in arm.scheme.slots.items() if name != "aggregation"},
                    "plain": arm.plain,
                    "front": arm in self.best,
                    "ram_mib": {
                        "planned": round(arm.scheme.memory.total_mib, 2),
                        "measured": round(arm.peak_mib, 2),
                    },
                    "reason": arm.reason,
                    "training": arm.record,
                }
                for arm in self.arms
            ],
        }


def compare_trainings(
    target: str, rows: Rows, report: Path, wish: Wish, *, bar: Progress | None = None
) -> Front:
    """Train every arm and write the report (one HTML file) at `report`.

    Slots that `wish` names stay as named. Raises UserError where nothing trains, and for a `report` that is
    a folder.
    """
    if report.is_dir() or not report.parent.is_dir():
        raise UserError(
            f"{report} cannot be the report; give the name of a file in a folder that exists (front.html).",
            field="output",
            given=str(report),
        )
    ready = prepare(target, rows, _free(wish), bar)
    plans = list(_chosen(ready, target, wish))
    facts = {
        "job": "compare",
        "base": ready.sha256,
        "data": ready.examples.mark,
        "arms": [scheme.label for scheme, _ in plans],
        "lessons": [wish.epochs, wish.batch, wish.rate, wish.seed, wish.threads],
        "length": rows.length,
    }
    if bar is not None:
        bar.total, bar.done = len(plans), 0.0
    with training_folder(report, facts) as folder:
        arms = []
        for number, (scheme, plain) in enumerate(plans):
            if bar is not None:
                bar.advance(0, label=f"training by {scheme.label}")
            arms.append(_arm(folder / f"arm-{number}", target, rows, wish, scheme, plain))
            if bar is not None:
                bar.advance()
        front = Front(report, ready.name, tuple(arms), tuple(best_of(arms)))
        write_atomically(report, training_report(front, ready, wish).encode())
        finished(folder)
    return front


def best_of(arms: Sequence[Arm]) -> Iterator[Arm]:
    """The arms that no other equals or beats in memory and accuracy both, beating it in one."""
    trained = [arm for arm in arms if arm.record is not None]
    for arm in trained:
        if not any(
            other.peak_mib <= arm.peak_mib
            and other.accuracy >= arm.accuracy
            and (other.peak_mib, -other.accuracy) != (arm.peak_mib, -arm.accuracy)
            for other in trained
        ):
            yield arm


def arms_of(found: Sequence[Scheme]) -> list[Scheme]:
    """Of all combinations: each way of each parameters method (at most WAYS_MOST) with the other slots at
    their best, then each gradient and precision method that did not come up, with the parameters at theirs.
    """
    arms: list[Scheme] = []
    ways: dict[str, list[str]] = {}
    for scheme in found:
        listed = ways.setdefault(scheme.parameters.partition(":")[0], [])
        if scheme.parameters not in listed:
            listed.append(scheme.parameters)
    for listed in ways.values():
        middle = [listed[0], listed[len(listed) // 2], listed[-1]]
        for way in dict.fromkeys(middle[:WAYS_MOST]):
            arms.append(next(scheme for scheme in found if scheme.parameters == way))
    for name in (_gradient, _precision):
        for scheme in found:
            if name(scheme) not in {name(arm) for arm in arms}:
                arms.append(scheme)
    return arms


def _gradient(scheme: Scheme) -> str:
    return scheme.gradient.partition(":")[0]


def _precision(scheme: Scheme) -> str:
    return scheme.precision


def _free(wish: Wish) -> Wish:
    """`wish` without a budget: every arm is trained, and the report shows which are within it."""
    from dataclasses import replace

    return replace(wish, budget=Budget())


def _chosen(ready: Prepared, target: str, wish: Wish) -> Iterator[tuple[Scheme, bool]]:
    """The arms, plain fine-tuning first: all tensors by backpropagation."""
    given = {**wish.slots, "parameters": "all", "gradient": "backprop:momentum=0.9"}
    opened = ready.choice.scheme.memory.lines[0][1]
    rows = min(wish.batch, len(ready.examples.learned))
    again: Callable[[], Any] = ready.open
    try:
        plain = schemes(again, opened, rows, wish.seed, given)[:1]
    except UserError:  # a network whose tensors no way back reaches has no plain fine-tuning
        plain = ()
    for scheme in plain:
        yield scheme, True
    for scheme in arms_of(ready.choice.schemes):
        if scheme.label not in {one.label for one in plain}:
            yield scheme, False


def _arm(stem: Path, target: str, rows: Rows, wish: Wish, scheme: Scheme, plain: bool) -> Arm:
    kept = stem.with_suffix(".json")
    if not kept.is_file():
        delta = stem.with_suffix(".delta")
        line = [sys.executable, "-c", PROGRAM, "train", "fit", target, "--data", str(rows.path)]
        line += ["--parameters", scheme.parameters, "--gradient", scheme.gradient]
        line += ["--precision", scheme.precision, "--head", rows.head, "--text-column", rows.text]
        line += ["--label-column", rows.label, "--epochs", str(wish.epochs), "--batch", str(wish.batch)]
        line += ["--seed", str(wish.seed), "--json", "-o", str(delta)]
        line += ["--skip-broken"] if rows.skip_broken else []
        line += [] if rows.length is None else ["--length", str(rows.length)]
        line += ["--tune"] if wish.rate is None else ["--rate", str(wish.rate)]
        line += [] if wish.threads is None else ["--threads", str(wish.threads)]
        done = run_measured(line)
        found = {"returncode": done.returncode, "peak_mib": done.peak_mib, "said": _said(done.stdout)}
        if done.returncode not in (0, 2):
            raise RuntimeError(f"the training by {scheme.label} failed: {done.stderr or done.stdout}")
        write_atomically(kept, (json.dumps(found) + "\n").encode())
        remove(delta)
        remove(delta.with_name(f"{delta.name}.training"))
    found = json.loads(kept.read_text(encoding="utf-8"))
    if found["returncode"]:
        return Arm(scheme, plain, None, found["peak_mib"], str(found["said"].get("error")))
    return Arm(scheme, plain, found["said"], found["peak_mib"])


def _said(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
