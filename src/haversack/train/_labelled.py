"""Learning from labelled rows: one choice a slot, a loop that can be killed at any moment, a delta at last.

What step i reads and does follows from the seed and i; the state beside the output holds the tensors that
learn and what the gradient method carries, so that a training that was killed and asked for again ends with
the same bytes (same machine type, same number of threads). Held-out rows are looked at twice, before the
first step and after the last; no setting is chosen by them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from haversack.core._files import (
    explain_write_errors,
    partial_path,
    put_in_place,
    remove,
    remove_stale_partials,
)
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.progress import Progress
from haversack.train._examples import Examples, batches
from haversack.train._network import Array, Network, Slice
from haversack.train._slots import Gradient, Learned, Numbers, Parameters, Precision, Settings, Stepper
from haversack.train._training import forget_rate

STATE = "state.npz"
_DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError),
    AttributeError,
    zipfile.BadZipFile,
    zlib.error,
)
WARM_SHARE, WARM_MOST = 0.05, 100


@dataclass(frozen=True)
class Lessons:
    """How long and how fast: `epochs` passes over the rows, `batch` rows a step, `rate` of the steps.
    `threads`: None leaves it to the libraries; it is part of what makes a run repeatable."""

    rate: float
    epochs: int = 10
    batch: int = 16
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            value = getattr(self, name)
            if value < 1:
                raise UserError(f"{name}={value} is below 1.", field=name, given=value, nearest=1)
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise UserError(f"rate={self.rate} is not above 0.", field="rate", given=self.rate)
        if self.threads is not None and self.threads < 1:
            raise UserError(
                f"threads={self.threads} is below 1.", field="threads", given=self.threads, nearest=1
            )

    def rows(self, examples: Examples) -> int:
        """Rows of a step; fewer than `batch` where there are fewer."""
        return min(self.batch, len(examples.learned))

    def steps(self, examples: Examples) -> int:
        """Steps in all; rows that do not fill a last batch are left out of that epoch."""
        return self.epochs * (len(examples.learned) // self.rows(examples))


@dataclass(frozen=True)
class Judged:
    """On held-out rows: the share that the likeliest class is right of, and the mean loss in nats."""

    accuracy: float
    loss: float

    def record(self) -> dict[str, float]:
        """As `--json` prints it."""
        return {"accuracy": round(self.accuracy, 5), "loss": round(self.loss, 5)}


@dataclass
class Course:
    """A training so far: steps done, their losses, seconds of all its runs, what was judged before it, the
    most bytes that a step saved for the way back."""

    before: Judged
    done: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    saved_nbytes: int = 0

    @property
    def edges(self) -> tuple[float, float]:
        """Mean loss of the first and of the last tenth of the steps."""
        tenth = max(1, len(self.losses) // 10)
        first, last = self.losses[:tenth], self.losses[-tenth:]
        return float(np.mean(first)), float(np.mean(last))


class Training:
    """A network made ready to learn, with its methods at work."""

    def __init__(
        self,
        network: Network,
        parameters: Parameters,
        gradient: Gradient,
        precision: Precision,
        lessons: Lessons,
        examples: Examples,
    ) -> None:
        self.network, self.lessons, self.examples = network, lessons, examples
        self.learned: Learned = parameters.prepare(network, lessons.seed)
        self.numbers: Numbers = precision.begin(network, self.learned)
        self.steps = lessons.steps(examples)
        self.rows = lessons.rows(examples)
        settings = Settings(self.steps, self.rows, lessons.seed, self.numbers)
        self.stepper: Stepper = gradient.begin(network, self.learned, settings)
        self._order: tuple[int, Any] = (-1, None)

    def run(
        self,
        folder: Path,
        *,
        bar: Progress | None = None,
        checkpoint_seconds: float = 20.0,
        stop_after: int | None = None,
    ) -> Course:
        """Learn to the end (or for `stop_after` steps in all), from the state in `folder` where there is one.

        Raises UserError at a loss that is not finite: the last state that was seen to be good is kept, and a
        lower rate goes on from it.
        """
        course = self._resume(folder / STATE)
        if course is None:
            course = Course(judge(self.network, self.examples, self.rows))
            self._keep(folder / STATE, course)
        if bar is not None:
            bar.advance(course.done)
        goal = self.steps if stop_after is None else min(stop_after, self.steps)
        good, kept = course.done, time.monotonic()
        while course.done < goal:
            began = time.monotonic()
            loss = self.step(course.done)
            if not math.isfinite(loss):
                raise self._stopped(folder, course.done + 1, good)
            course.done += 1
            course.losses.append(loss)
            course.saved_nbytes = max(course.saved_nbytes, self.network.saved_nbytes)
            now = time.monotonic()
            course.seconds += now - began
            if bar is not None:
                bar.advance(label=f"training, loss {loss:.3f}")
            if now - kept >= checkpoint_seconds or course.done == goal:
                # A step's loss tells of the numbers before it: what is kept must have been seen to be good.
                if not math.isfinite(self.network.loss(self.examples.batch(self._rows(course.done - 1)))):
                    raise self._stopped(folder, course.done + 1, good)
                self._keep(folder / STATE, course)
                good, kept = course.done, now
        return course

    def _stopped(self, folder: Path, step: int, good: int) -> UserError:
        forget_rate(folder)
        rate = self.lessons.rate
        return UserError(
            f"the loss of step {step} is not finite (rate {rate:.3g}); the state after step {good} is kept "
            f"in {folder}: the same command with a lower --rate goes on from it, and removing the folder "
            "starts anew.",
            field="rate",
            given=rate,
            nearest=rate / 10,
        )

    def step(self, step: int) -> float:
        """Take the step number `step`; its loss."""
        rate = rate_at(step, self.steps, self.lessons.rate)
        return self.stepper.step(self.examples.batch(self._rows(step)), rate)

    def _rows(self, step: int) -> Any:
        epoch, place = divmod(step, self.steps // self.lessons.epochs)
        if self._order[0] != epoch:
            self._order = (epoch, self.examples.order(epoch, self.lessons.seed))
        return self._order[1][place * self.rows : (place + 1) * self.rows]

    def _parts(self) -> dict[str, Slice | None]:
        return {**self.learned.wanted, **dict.fromkeys(self.learned.moved)}

    def _keep(self, path: Path, course: Course) -> None:
        """Write the whole state; the previous one is replaced only when this one is on the disk."""
        tensors = self.network.tensors()
        facts = {
            "done": course.done,
            "seconds": course.seconds,
            "saved_nbytes": course.saved_nbytes,
            "before": [course.before.accuracy, course.before.loss],
        }
        arrays: dict[str, Array] = {
            "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8),
            "losses": np.array(course.losses, np.float64),
        }
        for name, part in self._parts().items():
            arrays[f"tensor:{name}"] = tensors[name] if part is None else part.of(tensors[name])
        arrays |= {f"stepper:{name}": array for name, array in self.stepper.state().items()}
        with replacing(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def _resume(self, path: Path) -> Course | None:
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as state:
                return self._restored(state)
        except _DAMAGE as error:
            raise DamagedFileError(
                path, "it is no state of this training", advice=f"Remove {path.parent} to start anew."
            ) from error

    def _restored(self, state: Mapping[str, Array]) -> Course:
        facts = json.loads(bytes(state["facts"]))
        tensors = self.network.tensors()
        for name, part in self._parts().items():
            values = state[f"tensor:{name}"]
            if part is None:
                tensors[name][...] = values
            else:
                part.put(tensors[name], values)
        prefix = "stepper:"
        carried = {key[len(prefix) :]: state[key] for key in state if key.startswith(prefix)}
        self.stepper.restore(carried)
        return Course(
            Judged(*facts["before"]),
            int(facts["done"]),
            [float(loss) for loss in state["losses"]],
            float(facts["seconds"]),
            int(facts["saved_nbytes"]),
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of `path` when it is whole: nothing of it is in memory
    twice. Raises UserError for a full disk."""
    with explain_write_errors(path):
        remove_stale_partials(path)
        partial = partial_path(path)
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            put_in_place(partial, path)
        finally:
            remove(partial)


def rate_at(step: int, steps: int, rate: float) -> float:
    """The rate of `step`: a linear rise over the first twentieth (at most 100 steps), then half a cosine down
    to nothing."""
    warm = max(1, min(WARM_MOST, round(WARM_SHARE * steps)))
    if step < warm:
        return rate * (step + 1) / warm
    return rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def judge(network: Network, examples: Examples, size: int) -> Judged:
    """The network, as in use, on the held-out rows, `size` of them at a time."""
    right, total = 0, 0.0
    for rows in batches(examples.held_out, size):
        batch = examples.batch(rows)
        logits = network.logits(batch.inputs).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        right += int((logits.argmax(axis=1) == batch.labels).sum())
        total -= float(log_p[np.arange(len(batch)), batch.labels].sum())
    count = len(examples.held_out)
    return Judged(right / count, total / count)


def set_threads(threads: int | None) -> None:
    """Threads of PyTorch, where a network has brought it."""
    torch = sys.modules.get("torch")
    if threads is not None and torch is not None:
        torch.set_num_threads(threads)
