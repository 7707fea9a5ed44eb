"""Fit on labels: a network learns a person's own classes on the device, inside a memory budget.

Papers: each method names its own; the loop is none's.
What is here: one choice a slot of stage train. The network at a path is opened by its kind
(train/networks/), its rows are read in the form that it takes, a head for the rows' classes is begun where
the network's own does not name them, and the methods train it: those that were named, or those that the
planner takes for the budget (train/_choice.py). What changed is written as a delta, which train/apply.py lays
over its base and takes away again.
Cost: by the plan that is printed; the measured peak stands beside it. Limits: one label a row; the kinds of
networks in train/networks/.
"""

from __future__ import annotations

import gc
import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from haversack.core import index
from haversack.core._files import write_atomically
from haversack.core._pack_writer import check_goal
from haversack.core._record import DeltaEntry
from haversack.core.budget import Budget
from haversack.core.errors import UserError, not_allowed
from haversack.core.measurement import Measurement, Quality
from haversack.core.memory import MIB, MemoryPlan
from haversack.core.progress import Progress
from haversack.train._choice import SLOTS, Choice, choose, schemes
from haversack.train._delta import taken, write_delta
from haversack.train._examples import Examples, match_classes, read_examples
from haversack.train._labelled import Course, Judged, Lessons, Training, judge, set_threads
from haversack.train._meter import Saved, opened_nbytes, saved_line, settled, settled_nbytes
from haversack.train._network import Network, identity
from haversack.train._slots import Gradient, Parameters, Precision
from haversack.train._training import finished, training_folder
from haversack.train.networks._open import least_nbytes, open_network

HEADS = ("auto", "keep", "new")
RATES = (1 / 3, 1.0, 3.0)
TUNED_SHARE = 4
"""One part of so many of the epochs is what a rate is tried for."""


@dataclass(frozen=True)
class Rows:
    """Where labelled rows are and how they are read: `text` and `label` name a table's columns; `head` says
    whether the network keeps its classifier (auto: where its outputs have names); `length`: tokens that are
    read of a text (None: the network's usual number)."""

    path: Path
    text: str = "text"
    label: str = "label"
    skip_broken: bool = False
    head: str = "auto"
    length: int | None = None

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise not_allowed("head", self.head, HEADS)


@dataclass(frozen=True)
class Wish:
    """What a person asks of the training: methods by slot (None leaves it to the planner), a budget, how
    long. `rate` None takes the gradient method's usual one; `tune` tries rates around it first."""

    parameters: str | None = None
    gradient: str | None = None
    precision: str | None = None
    budget: Budget = field(default_factory=Budget)
    epochs: int = 10
    batch: int = 16
    rate: float | None = None
    seed: int = 0
    threads: int | None = None
    tune: bool = False

    def __post_init__(self) -> None:
        Lessons(1.0 if self.rate is None else self.rate, self.epochs, self.batch, self.seed, self.threads)

    @property
    def slots(self) -> dict[str, str | None]:
        """Slot -> choice or None."""
        return {slot: getattr(self, slot) for slot in SLOTS}

    def lessons(self, gradient: Gradient) -> Lessons:
        """With the rate that holds."""
        rate = gradient.usual_rate if self.rate is None else self.rate
        return Lessons(rate, self.epochs, self.batch, self.seed, self.threads)


@dataclass(frozen=True)
class FittedDelta:
    """A written delta and how it came about."""

    path: Path
    network: str
    classes: tuple[str, ...]
    new_head: bool
    choice: Choice
    lessons: Lessons
    examples: Examples
    course: Course
    after: Judged
    nbytes: int
    tensors: int
    saved: Saved

    @property
    def memory(self) -> MemoryPlan:
        """What was planned."""
        return self.choice.scheme.memory

    def record(self) -> dict[str, Any]:
        """As `train fit --json` prints it."""
        scheme, examples, first_last = self.choice.scheme, self.examples, self.course.edges
        return {
            "output": str(self.path),
            "network": self.network,
            "classes": list(self.classes),
            "new_head": self.new_head,
            "slots": scheme.slots,
            "why": self.choice.why,
            "learned_numbers": scheme.numbers,
            "steps": self.course.done,
            "rate": self.lessons.rate,
            "rows": {
                "learned": len(examples.learned),
                "held_out": len(examples.held_out),
                "left_out": [list(each) for each in examples.left_out],
            },
            "loss": {"first": round(first_last[0], 5), "last": round(first_last[1], 5)},
            "held_out": {"before": self.course.before.record(), "after": self.after.record()},
            "delta": {"nbytes": self.nbytes, "tensors": self.tensors},
            "saved_mib": self.saved.record(),
            "plan_mib": self.memory.record()["lines"],
            "seconds": round(self.course.seconds, 2),
        }


@dataclass(frozen=True)
class Prepared:
    """Everything before the first step: the base's `name` and hash, its rows, the head, the scheme."""

    target: str
    name: str
    sha256: str
    examples: Examples
    new_head: bool
    choice: Choice
    seed: int
    length: int | None = None

    def open(self) -> Network:
        """The network anew, with the head that it learns with."""
        classes = self.examples.classes if self.new_head else None
        return _opened(self.target, classes, self.seed, self.length)

    def record(self) -> dict[str, Any]:
        """As `train fit --plan --json` prints it."""
        scheme = self.choice.scheme
        return {
            "network": self.name,
            "slots": scheme.slots,
            "why": self.choice.why,
            "learned_numbers": scheme.numbers,
            "rows": {
                "learned": len(self.examples.learned),
                "held_out": len(self.examples.held_out),
                "left_out": [list(each) for each in self.examples.left_out],
            },
            "schemes": [each.record() for each in self.choice.schemes],
            "plan_mib": scheme.memory.record()["lines"],
            "ram_mib": round(scheme.memory.total_mib, 2),
        }

    def methods(self) -> tuple[Parameters, Gradient, Precision]:
        """Of the chosen scheme."""
        made = [index.create("train", slot, getattr(self.choice.scheme, slot)) for slot in SLOTS]
        return cast(Parameters, made[0]), cast(Gradient, made[1]), cast(Precision, made[2])


def prepare(target: str | Path, rows: Rows, wish: Wish, bar: Progress | None = None) -> Prepared:
    """Read the rows, settle the head and choose the methods; nothing is trained or written.

    Raises UserError for what does not go together, BudgetError where nothing fits: before the weights are
    read, where they alone do not.
    """
    least = max(opened_nbytes(), settled_nbytes() + least_nbytes(target))
    wish.budget.require({"ram_mib": least / MIB}, f"opening {target} alone")
    network = open_network(target, wish.seed, rows.length)
    examples = read_examples(
        rows.path,
        network.form,
        seed=wish.seed,
        text=rows.text,
        label=rows.label,
        skip_broken=rows.skip_broken,
        progress=None if bar is None else lambda count: _reading(bar, count),
    )
    new_head = rows.head == "new" or (rows.head == "auto" and network.classes is None)
    if not new_head:
        if network.classes is None:
            raise UserError(
                f"the outputs of {network.name} have no names, so no label can be one of them; use "
                "--head new.",
                field="head",
                given=rows.head,
                nearest="new",
            )
        examples = match_classes(examples, network.classes, network.name)
    sha256, name = identity(network), network.name
    tensors = sum(array.nbytes for array in network.tensors().values())
    opened = opened_nbytes()
    del network
    gc.collect()
    count = min(wish.batch, len(examples.learned))
    classes = examples.classes if new_head else None
    found = schemes(
        lambda: _opened(str(target), classes, wish.seed, rows.length), opened, count, wish.seed, wish.slots
    )
    now, peak = settled_nbytes(), opened_nbytes()
    found = tuple(replace(one, memory=settled(one.memory, now, tensors, peak)) for one in found)
    choice = choose(found, wish.budget, name, named=None not in wish.slots.values())
    if bar is not None:
        bar.done, bar.label = 0.0, f"training {name}"
    return Prepared(str(target), name, sha256, examples, new_head, choice, wish.seed, rows.length)


def fit_labels(
    target: str | Path,
    rows: Rows,
    goal: Path,
    wish: Wish,
    *,
    bar: Progress | None = None,
    checkpoint_seconds: float = 20.0,
    stop_after: int | None = None,
) -> FittedDelta | None:
    """Train the network `target` on `rows` and write the delta `goal`.

    An interrupted training goes on from its state when it is asked for again. `stop_after` ends after so
    many steps without writing (None is returned). Raises UserError, BudgetError and DamagedFileError as
    `prepare` does, and UserError for a loss that is not finite.
    """
    check_goal(goal)
    ready = prepare(target, rows, wish, bar)
    parameters, gradient, precision = ready.methods()
    lessons = wish.lessons(gradient)
    facts = {
        "job": "fit labels",
        "base": ready.sha256,
        "data": ready.examples.mark,
        "head": "new" if ready.new_head else "kept",
        "length": rows.length,
        "slots": ready.choice.scheme.slots,
        **asdict(lessons),
        "tune": wish.tune,
    }
    set_threads(lessons.threads)
    with training_folder(goal, facts) as folder:
        if wish.tune:
            lessons = tuned(ready, lessons, folder, bar)
        network = ready.open()
        training = Training(network, parameters, gradient, precision, lessons, ready.examples)
        if bar is not None:
            bar.total, bar.done = training.steps, 0.0
        course = training.run(folder, bar=bar, checkpoint_seconds=checkpoint_seconds, stop_after=stop_after)
        if course.done < training.steps:
            return None
        training.numbers.finish()
        after = judge(network, ready.examples, training.rows)
        entry = DeltaEntry(
            base_name=ready.name,
            base_sha256=ready.sha256,
            classes=ready.examples.classes,
            new_head=ready.new_head,
            slots=ready.choice.scheme.slots,
            seed=lessons.seed,
        )
        delta = taken(network, training.learned, entry)
        measured = [_measurement(judged, lessons.seed) for judged in (course.before, after)]
        provenance: dict[str, Any] = {
            "rows": len(ready.examples.learned),
            "steps": course.done,
            "rate": lessons.rate,
        }
        if rows.length is not None:
            provenance["length"] = rows.length
        nbytes = write_delta(goal, delta, measured, provenance)
        finished(folder)
    return FittedDelta(
        goal,
        ready.name,
        ready.examples.classes,
        ready.new_head,
        ready.choice,
        lessons,
        ready.examples,
        course,
        after,
        nbytes,
        len(delta.values),
        Saved(saved_line(ready.choice.scheme.memory), course.saved_nbytes),
    )


def tuned(ready: Prepared, lessons: Lessons, folder: Path, bar: Progress | None = None) -> Lessons:
    """`lessons` at the rate, of RATES times its own, that gives the lowest loss on a part of the rows to
    learn from after a short training on the others; held-out rows are not looked at. Kept in `folder`."""
    kept = folder / "rate.json"
    if kept.is_file():
        return replace(lessons, rate=float(json.loads(kept.read_text(encoding="utf-8"))["rate"]))
    rows = ready.examples.validation(lessons.seed)
    found = []
    for factor in RATES:
        short = replace(lessons, rate=factor * lessons.rate, epochs=max(1, lessons.epochs // TUNED_SHARE))
        if bar is not None:
            bar.total, bar.done, bar.label = short.steps(rows), 0.0, f"trying rate {short.rate:.3g}"
        loss = _short_run(ready, short, rows, bar)
        found.append((loss if math.isfinite(loss) else math.inf, factor * lessons.rate))
        gc.collect()
    loss, rate = min(found)
    if not math.isfinite(loss):
        raise UserError(
            f"no rate of {', '.join(f'{rate:.3g}' for _, rate in found)} keeps the loss finite; give a lower "
            "--rate.",
            field="rate",
            given=lessons.rate,
            nearest=lessons.rate / 100,
        )
    record = {"rate": rate, "tried": [{"rate": each, "loss": loss} for loss, each in found]}
    write_atomically(kept, (json.dumps(record, indent=1) + "\n").encode())
    return replace(lessons, rate=rate)


def _short_run(ready: Prepared, lessons: Lessons, rows: Examples, bar: Progress | None) -> float:
    """The loss on the rows that `rows` keeps apart after a training that is not kept; infinite where one of
    its own is not finite."""
    network = ready.open()
    training = Training(network, *ready.methods(), lessons, rows)
    for step in range(training.steps):
        if not math.isfinite(training.step(step)):
            return math.inf
        if bar is not None:
            bar.advance()
    training.numbers.finish()
    return judge(network, rows, training.rows).loss


def _opened(target: str, classes: tuple[str, ...] | None, seed: int, length: int | None) -> Network:
    network = open_network(target, seed, length)
    if classes is not None:
        network.new_head(classes, seed)
    return network


def _reading(bar: Progress, count: int) -> None:
    bar.total = count
    bar.advance(label="reading pictures")


def _measurement(judged: Judged, seed: int) -> dict[str, Any]:
    """On held-out rows, without anything that differs between two runs of the same training."""
    qualities = (
        Quality("held-out accuracy", round(judged.accuracy, 6), "higher"),
        Quality("held-out loss", round(judged.loss, 6), "lower"),
    )
    return Measurement(qualities, seed=seed).record()
