"""Students that learn from the shipped teacher, on the pictures and with the seed of the shipped network, all
for the same short while, and but for one difference each; kept in the cache."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from haversack.bench._cache import cached
from haversack.bench._harness import Run
from haversack.bench._store import content_hash
from haversack.bench.slimmable_split_encoders._bench import NETWORK, pack, pictures
from haversack.core import index
from haversack.models.vision._slim_student_torch import Slim
from haversack.models.vision._slim_teacher_torch import Frozen
from haversack.models.vision.slimmable import gains
from haversack.models.vision.slimmable_torch import Distilling, Student, distil, modules_of, recalibrate
from haversack.models.vision.width_slimmable_torch import WidthStudent
from haversack.share._split_data import MADE, made
from haversack.share._split_pack import open_split, read_tensors
from haversack.share._split_train_torch import distilling, qualities
from haversack.share.slimmable import Mode, Slimmable

TRAINING = ("models/vision/*slim*_torch.py", "models/vision/_slim_record.py", "models/vision/_scenes.py")
STEPS, ROWS = 240, 8
"""Of every student here; the shipped network learned longer, so none is compared with it."""


def method() -> Slimmable:
    """How the shipped network was trained."""
    made_by = index.create("share", "cut", str(open_split(pack())[0].record.provenance["method"]))
    assert isinstance(made_by, Slimmable)
    return made_by


def short() -> Distilling:
    """The same, for `STEPS` steps of `ROWS` pictures."""
    return replace(distilling(method()), steps=STEPS, rows=ROWS)


@functools.cache
def known() -> np.ndarray:
    """The pictures that the shipped network learned from."""
    return made(MADE, 1 + 2 * method().seed).pictures


def ensemble(run: Run, modes: Sequence[Mode]) -> dict[Mode, float]:
    """The method itself, mAP@0.5 in points as everywhere here."""
    return _taught(run, "ensemble", _fresh, short(), modes)


def static(run: Run, k: int) -> dict[Mode, float]:
    """An encoder of k members and four bits that learned for this mode alone."""
    return _taught(run, f"static-{k}", _fresh, replace(short(), static=(k, 4)), ((k, 4),))


def predecessor(run: Run, modes: Sequence[Mode]) -> dict[Mode, float]:
    """One encoder with a bottleneck whose width is chosen."""
    return _taught(run, "predecessor", lambda: WidthStudent(_net()), short(), modes)


def ablated(run: Run, name: str, modes: Sequence[Mode]) -> dict[Mode, float]:
    """Without a part of the method: `sandwich` or `gains`."""
    if name == "sandwich":
        return _taught(run, name, _fresh, replace(short(), sandwich=False), modes)
    return _taught(run, name, lambda: Student(_net(), gains(4, 1.0, 1.0)), short(), modes)


def without_mode_norms(run: Run, modes: Sequence[Mode]) -> tuple[dict[Mode, float], dict[Mode, float]]:
    """The shipped network, and the same with one set of statistics, taken anew over all modes."""
    opened, record = open_split(pack())
    tensors = read_tensors(opened)
    teacher, whole = modules_of(record.net, tensors)

    def make(goal) -> None:  # type: ignore[no-untyped-def]
        student = modules_of(record.net, tensors, shared=True)[1]
        recalibrate(student, known(), short())
        torch.save(student.state_dict(), goal / "student.pt")

    shared = Student(record.net, shared=True)
    place = cached("split-shared", {"program": content_hash(NETWORK)["package"]}, make)
    shared.load_state_dict(torch.load(place / "student.pt", weights_only=True))
    return _worth(run, teacher, whole, modes), _worth(run, teacher, shared, modes)


def _net():  # type: ignore[no-untyped-def]
    return open_split(pack())[1].net


def _fresh() -> Student:
    return Student(_net())


def _taught(
    run: Run, name: str, student: Callable[[], Slim], how: Distilling, modes: Sequence[Mode]
) -> dict[Mode, float]:
    opened, record = open_split(pack())
    teacher, _ = modules_of(record.net, read_tensors(opened))

    def make(goal) -> None:  # type: ignore[no-untyped-def]
        torch.manual_seed(method().seed + 1)
        fresh = student()
        run.say(name)
        distil(teacher, fresh, known(), how, run.say)
        torch.save(fresh.state_dict(), goal / "student.pt")

    program = content_hash(TRAINING)["package"]
    inputs = {"name": name, "how": str(how), "teacher": _digest(teacher), "program": program}
    found = student()
    place = cached("split-student", inputs, make) / "student.pt"
    found.load_state_dict(torch.load(place, weights_only=True))
    return _worth(run, teacher, found, modes)


def _worth(run: Run, teacher: Frozen, student: Slim, modes: Sequence[Mode]) -> dict[Mode, float]:
    return {
        mode: 100 * value for mode, value in qualities(teacher, student, pictures(run), tuple(modes)).items()
    }


def _digest(teacher: Frozen) -> str:
    total = hashlib.sha256()
    for name, tensor in teacher.state_dict().items():
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return total.hexdigest()
