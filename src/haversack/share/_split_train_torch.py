"""From pictures to a split network: teacher, student, the table of what each mode is worth.

The teacher is kept in `keep` as soon as it is whole, the student every fifty steps, so that a run that was
killed goes on from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haversack.core.errors import UserError
from haversack.models.vision._average_precision import mean_average_precision
from haversack.models.vision._slim_record import SplitNet
from haversack.models.vision._slim_student_torch import Slim, measures, normed, sum_of
from haversack.models.vision._slim_teacher_torch import Teacher
from haversack.models.vision._spots import detections
from haversack.models.vision._spots_torch import Teaching, teach
from haversack.models.vision.slimmable import gains
from haversack.models.vision.slimmable_torch import Distilling, Student, distil, modules_of, tensors_of
from haversack.share._split_data import SplitData, boxes_of
from haversack.share._split_pack import open_split, read_tensors
from haversack.share.slimmable import Mode, Slimmable

F32 = NDArray[np.float32]
Say = Callable[[str], None]
METRICS = {"detect": "mAP@0.5", "classify": "accuracy"}


@dataclass
class Trained:
    """A trained split network with what it is worth on pictures that it did not learn from."""

    net: SplitNet
    teacher: Teacher
    student: Student
    table: dict[Mode, float]
    teacher_quality: float

    @property
    def tensors(self) -> dict[str, F32]:
        return tensors_of(self.teacher, self.student)


def train_split(
    data: SplitData,
    held: SplitData,
    how: Slimmable,
    keep: Path | None = None,
    say: Say = lambda text: None,
    teacher: Teacher | None = None,
) -> Trained:
    """Teacher, student and table; `held` is what the table is measured on. `teacher`: one that was trained
    before."""
    net = SplitNet(data.task, data.classes, data.pictures.shape[1], how.members)
    if teacher is None:
        teacher = kept_teacher(net, data, how, keep, say)
    torch.manual_seed(how.seed + 1)
    student = Student(net, gains(how.members, how.gain))
    distil(teacher, student, data.pictures, distilling(how), say, _kept_student(teacher, data, how, keep))
    say("what each mode is worth")
    table = qualities(teacher, student, held)
    return Trained(net, teacher, student, table, quality(teacher_answers(teacher, held), held))


def _kept_student(teacher: Teacher, data: SplitData, how: Slimmable, keep: Path | None) -> Path | None:
    """Where a student on its way is kept: by its teacher, pictures, and all of `how` but the steps."""
    if keep is None:
        return None
    total = hashlib.sha256(data.pictures.tobytes())
    for name, tensor in teacher.state_dict().items():
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    total.update(str(replace(how, steps=1)).encode())
    keep.mkdir(parents=True, exist_ok=True)
    return keep / f"student-{total.hexdigest()[:16]}.pt"


def teacher_of_pack(path: str, data: SplitData) -> Teacher:
    """The teacher of a split pack. Raises UserError where it is for other classes or another size."""
    pack, record = open_split(path)
    if record.half != "whole":
        raise UserError(f"{path} is a device's half and has no teacher.", field="teacher", given=path)
    given = (data.task, data.classes, data.pictures.shape[1])
    if given != (record.task, record.classes, record.side):
        raise UserError(
            f"the teacher of {path} is for {record.task}, pictures of {record.side} pixels and the classes "
            f"{', '.join(record.classes)[:200]}; the pictures given are for other ones.",
            field="teacher",
            given=path,
        )
    return modules_of(record.net, read_tensors(pack))[0]


def distilling(how: Slimmable) -> Distilling:
    """The method's parameters as the student's training takes them."""
    return Distilling(how.steps, how.rows, copies=how.copies, seed=how.seed)


def kept_teacher(
    net: SplitNet, data: SplitData, how: Slimmable, keep: Path | None, say: Say = lambda text: None
) -> Teacher:
    """The teacher, from `keep` where it was trained before on the same pictures in the same way."""
    total = hashlib.sha256(data.pictures.tobytes())
    total.update(json.dumps([net.task, net.classes, how.teacher_steps, how.seed]).encode())
    path = None if keep is None else keep / f"teacher-{total.hexdigest()[:16]}.pt"
    if path is not None and path.is_file():
        say("the teacher was trained before")
        teacher = Teacher(net)
        teacher.load_state_dict(torch.load(path, weights_only=True))
        return teacher.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]
    say("the teacher learns")
    teaching = Teaching(how.teacher_steps, seed=how.seed)
    if data.labels is not None:
        teacher = teach(net, data.pictures, None, data.labels, teaching, say)
    else:
        boxes, labels = boxes_of(data)
        teacher = teach(net, data.pictures, boxes, labels, teaching, say)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(teacher.state_dict(), path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
    return teacher


def teacher_answers(teacher: Teacher, data: SplitData) -> F32:
    """The teacher's logits."""
    return _answers(lambda x: teacher(x), data.pictures)


def qualities(
    teacher: Teacher, student: Slim, data: SplitData, modes: Sequence[Mode] | None = None, rows: int = 50
) -> dict[Mode, float]:
    """What each mode is worth (None: all); parts are computed once for all modes."""
    measures(student, False)
    wanted = student.modes if modes is None else modes
    most = max(k for k, _ in wanted)
    found: dict[Mode, list[F32]] = {mode: [] for mode in wanted}
    with torch.no_grad():
        for at in range(0, len(data), rows):
            parts = student.outputs(normed(data.pictures[at : at + rows]), most)
            for mode in wanted:
                split = student.decode(student.sent(sum_of(parts[: mode[0]]), mode[1]), mode)
                found[mode].append(teacher.answer(teacher.rest(split)[-1]).numpy())
    return {mode: quality(np.concatenate(answers), data) for mode, answers in found.items()}


def _answers(network: Callable[[Tensor], Tensor], pictures: NDArray[np.uint8], rows: int = 50) -> F32:
    with torch.no_grad():
        parts = [network(normed(pictures[at : at + rows])).numpy() for at in range(0, len(pictures), rows)]
    return np.concatenate(parts)


def quality(logits: F32, data: SplitData, thresholds: Sequence[float] = (0.5,)) -> float:
    """mAP@0.5 of a detector's logits, accuracy of a classifier's."""
    if data.labels is not None:
        return float((logits.argmax(1) == data.labels).mean())
    found = [detections(each, len(data.classes)) for each in logits]
    return mean_average_precision(found, data.truth, len(data.classes), thresholds)
