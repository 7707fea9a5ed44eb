"""Students that learn from the shipped teacher, on the pictures, for the steps and with the seed of the
shipped network, but for one difference each; kept in the cache."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from haversack.bench._cache import cached
from haversack.bench._harness import Run
from haversack.bench._store import content_hash
from haversack.bench.slimmable_split_encoders._bench import NETWORK, pack, pictures
from haversack.core import index
from haversack.models.vision.slimmable import gains
from haversack.models.vision.slimmable_torch import Distilling, Student, distil, modules_of, recalibrate
from haversack.share._split_data import MADE, made
from haversack.share._split_pack import open_split, read_tensors
from haversack.share._split_train_torch import distilling, quality, student_answers
from haversack.share.slimmable import Mode, Slimmable


def method() -> Slimmable:
    """How the shipped network was trained."""
    made_by = index.create("share", "cut", str(open_split(pack())[0].record.provenance["method"]))
    assert isinstance(made_by, Slimmable)
    return made_by


@functools.cache
def known() -> np.ndarray:
    """The pictures that the shipped network learned from."""
    return made(MADE, 1 + 2 * method().seed).pictures


def static(run: Run, k: int) -> dict[Mode, float]:
    """An encoder of k members and four bits that learned for this mode alone."""
    return _worth(run, f"static-{k}", _fresh, replace(distilling(method()), static=(k, 4)), ((k, 4),))


def ablated(run: Run, name: str, modes: tuple[Mode, ...]) -> dict[Mode, float]:
    """mAP@0.5 in points without a part of the method: `sandwich`, `gains`, or `mode-norms`."""
    how = distilling(method())
    if name == "sandwich":
        return _worth(run, name, _fresh, replace(how, sandwich=False), modes)
    if name == "gains":
        even = gains(4, 1.0, 1.0)
        return _worth(run, name, lambda: Student(open_split(pack())[1].net, even), how, modes)
    return _worth(run, name, _shared, None, modes)


def _fresh() -> Student:
    return Student(open_split(pack())[1].net)


def _shared() -> Student:
    opened, record = open_split(pack())
    return modules_of(record.net, read_tensors(opened), shared=True)[1]


def _worth(
    run: Run, name: str, student: Callable[[], Student], how: Distilling | None, modes: tuple[Mode, ...]
) -> dict[Mode, float]:
    """mAP@0.5 in points of a student that learned as `how` says; None: whose statistics are taken anew."""
    opened, record = open_split(pack())
    teacher, _ = modules_of(record.net, read_tensors(opened))

    def make(goal: Path) -> None:
        torch.manual_seed(method().seed + 1)
        fresh = student()
        if how is None:
            recalibrate(fresh, known(), distilling(method()))
        else:
            distil(teacher, fresh, known(), how, run.say)
        torch.save(fresh.state_dict(), goal / "student.pt")

    inputs = {"name": name, "how": str(how), "program": content_hash(NETWORK)["package"]}
    found = student()
    place = cached("split-student", inputs, make) / "student.pt"
    found.load_state_dict(torch.load(place, weights_only=True))
    data = pictures(run)
    return {mode: 100 * quality(student_answers(teacher, found, mode, data), data) for mode in modes}
