"""One transfer: the backbone learns five new classes by a choice of the slot parameters.

What lies below the lowest block that learns runs once; its maps are kept for all arms that begin there.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench.mobiletl import _data
from haversack.bench.mobiletl._data import Pictures
from haversack.core import index
from haversack.train._network import Batch
from haversack.train._slots import Settings

PER_CLASS, EPOCHS, ROWS = 200, 10, 16
GRADIENT = "backprop:rule=adam"
TUNED_SHARE = 0.2
"""Of the training pictures: what rates are chosen on."""


@dataclass(frozen=True)
class Task:
    """A backbone and the pictures of the new classes: what is learned from, what judges."""

    backbone: Path
    learned: Pictures
    judged: Pictures
    epochs: int = EPOCHS

    @functools.cache  # noqa: B019 - a task lives as long as its run
    def maps(self, start: int) -> tuple[Batch, Batch]:
        """(learned, judged) as what comes into block `start`; 0: pictures."""
        network = opened(self.backbone)
        if start == 0:
            parts = [each.pictures for each in (self.learned, self.judged)]
        else:
            parts = [network.maps(each.pictures, start) for each in (self.learned, self.judged)]
        return Batch(parts[0], self.learned.labels), Batch(parts[1], self.judged.labels)

    def __hash__(self) -> int:
        return id(self)


def tasks(
    backbone: Path, per_class: int = PER_CLASS, epochs: int = EPOCHS, seed: int = 0
) -> tuple[Task, Task]:
    """The task, and the one that rates are chosen on: four fifths of its training pictures to learn from, a
    fifth to judge by, and half of the epochs."""
    train, test = _data.read(_data.AFTER)
    draw = np.random.default_rng([seed, 0x7A5])
    chosen = np.concatenate(
        [
            draw.permutation(np.flatnonzero(train.labels == label))[:per_class]
            for label in range(len(_data.AFTER))
        ]
    )
    chosen = draw.permutation(chosen)
    held = int(len(chosen) * TUNED_SHARE)
    whole = Task(backbone, train.taken(chosen), test, epochs)
    tuning = Task(backbone, train.taken(chosen[held:]), train.taken(chosen[:held]), math.ceil(epochs / 2))
    return whole, tuning


def opened(backbone: Path) -> Any:
    """The backbone as a network."""
    from haversack.train.networks.mobilenet import open_network

    return open_network(backbone, 0)


def transfer(task: Task, parameters: str, rate: float, seed: int) -> float:
    """The accuracy in percent after learning by `parameters` with Adam, the rate falling to 0 like a cosine;
    nan where the loss is no number any more."""
    network = opened(task.backbone)
    network.new_head(_data.AFTER, seed)
    learned = index.create("train", "parameters", parameters).prepare(network, seed)  # type: ignore[attr-defined]
    start = network.lowest(learned.wanted)
    rows, judged = task.maps(start)
    upper = network.above(start)
    each = len(rows) // ROWS
    steps = task.epochs * each
    stepper = index.create("train", "gradient", GRADIENT).begin(  # type: ignore[attr-defined]
        upper, learned, Settings(steps, ROWS, seed)
    )
    draw = np.random.default_rng([seed, 0x0DE5])
    for step in range(steps):
        if step % each == 0:
            order = draw.permutation(len(rows))
        chosen = order[step % each * ROWS : (step % each + 1) * ROWS]
        batch = Batch(rows.inputs[chosen], rows.labels[chosen])
        if not math.isfinite(stepper.step(batch, rate * 0.5 * (1 + math.cos(math.pi * step / steps)))):
            return math.nan
    right = upper.logits(judged.inputs).argmax(1) == judged.labels
    return 100 * float(right.mean())


def kept(backbone: Path, parameters: str, rows: int) -> int:
    """Bytes that a step of `rows` pictures keeps for the way back, measured in one."""
    network = opened(backbone)
    network.new_head(_data.AFTER, 0)
    method: Any = index.create("train", "parameters", parameters)
    learned = method.prepare(network, 0)
    size = network.record.size
    pictures = np.zeros((rows, size, size, 3), np.uint8)
    network.gradients(Batch(pictures, np.zeros(rows, np.int64)), learned.wanted)
    return int(network.saved_nbytes)
