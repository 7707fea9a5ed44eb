"""From pictures to a split network: teacher, student, the table of what each mode is worth.

The teacher is kept in `keep` as soon as it is whole, the student every fifty steps, so that a run that was
killed goes on from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haversack.core.errors import UserError
from haversack.formats.coco import Detections
from haversack.models.vision._average_precision import mean_average_precision
from haversack.models.vision._slim_record import SplitNet
from haversack.models.vision._slim_student_torch import Slim, measures, normed, sum_of
from haversack.models.vision._slim_teacher_torch import Frozen, Teacher
from haversack.models.vision._spots import detections
from haversack.models.vision._spots_torch import Teaching, teach
from haversack.models.vision.slimmable import gains, learned_range, levels_of, quantize
from haversack.models.vision.slimmable_torch import (
    Distilling,
    Student,
    begin_at,
    distil,
    teacher_of,
    tensors_of,
)
from haversack.share._split_data import SplitData, boxes_of
from haversack.share._split_pack import open_split, read_tensors, rounded
from haversack.share._split_teachers import Published
from haversack.share.slimmable import Mode, Slimmable

F32 = NDArray[np.float32]
Say = Callable[[str], None]
METRICS = {"detect": "mAP@0.5", "classify": "accuracy"}


@dataclass
class Trained:
    """A trained split network with what it is worth on pictures that it did not learn from."""

    net: SplitNet
    teacher: Frozen
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
    teacher: Frozen | None = None,
) -> Trained:
    """Teacher, student and table; `held` is what the table is measured on. `teacher`: one that was trained
    before."""
    net = SplitNet(data.task, data.classes, data.pictures.shape[1], how.members)
    if teacher is None:
        teacher = kept_teacher(net, data, how, keep, say)
    net = replace(net, detector=teacher.net.detector)
    torch.manual_seed(how.seed + 1)
    student = Student(net, gains(how.members, how.gain))
    if net.detector is not None:
        begin_at(teacher, student, data.pictures, how.seed)
    distil(teacher, student, data.pictures, distilling(how), say, _kept_student(teacher, data, how, keep))
    say("what each mode is worth")
    if isinstance(teacher, Teacher):
        table = qualities(teacher, student, held)
        return Trained(net, teacher, student, table, quality(teacher_answers(teacher, held), held))
    table, whole = precisions(net, rounded(tensors_of(teacher, student)), student, held, say)
    return Trained(net, teacher, student, table, whole)


def _kept_student(teacher: Frozen, data: SplitData, how: Slimmable, keep: Path | None) -> Path | None:
    """Where a student on its way is kept: by its teacher, pictures, and all of `how` but the steps."""
    if keep is None:
        return None
    total = hashlib.sha256(data.pictures.tobytes())
    for name, tensor in teacher.state_dict().items():
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    total.update(str(replace(how, steps=1)).encode())
    keep.mkdir(parents=True, exist_ok=True)
    return keep / f"student-{total.hexdigest()[:16]}.pt"


def teacher_of_checkpoint(found: Published, data: SplitData) -> Frozen:
    """The frozen teacher that a published detector is for the classes of `data`. Raises UserError where
    they do not fit."""
    net = SplitNet("detect", data.classes, data.pictures.shape[1], detector=found.detector(data))
    return teacher_of(net, found.rounded())


def teacher_of_pack(path: str, data: SplitData) -> Frozen:
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
    teacher = teacher_of(record.net, read_tensors(pack))
    return teacher.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


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
    teacher: Frozen, student: Slim, data: SplitData, modes: Sequence[Mode] | None = None, rows: int = 50
) -> dict[Mode, float]:
    """What each mode is worth with our own teacher (None: all); parts are computed once for all modes."""
    assert isinstance(teacher, Teacher)
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


def precisions(
    net: SplitNet, tensors: Mapping[str, F32], student: Slim, data: SplitData, say: Say = lambda text: None
) -> tuple[dict[Mode, float], float]:
    """mAP@0.5 of every mode and of the whole teacher, a published detector: by the graphs that the server
    runs, picture by picture."""
    from haversack.models.vision._slim_onnx import look_onnx, server_onnx, teacher_onnx
    from haversack.share._split_halves import ServerHalf, fed_with

    measures(student, False)
    look = look_onnx(net, tensors)
    threads = torch.get_num_threads()
    server = ServerHalf(net, server_onnx(net, tensors), look, threads, "the server's half")
    clips = levels_of(tensors)
    found: dict[Mode, list[Detections]] = {mode: [] for mode in student.modes}
    for at, picture in enumerate(data.pictures):
        with torch.no_grad():
            parts = [each[0].numpy() for each in student.outputs(normed(picture[None]), student.most)]
        for k, b in student.modes:
            y = np.asarray(np.sum(parts[:k], 0), np.float32)
            low, step = learned_range(y, b, clips[b - 1])
            said = server.run(fed_with(quantize(y, b, low, step), low, step, k, b))
            found[k, b].append(server.found(said))
        say(f"picture {at + 1} of {len(data)} in every mode")
    del server
    whole = ServerHalf(net, teacher_onnx(net, tensors), look, threads, "the teacher")
    seen = [whole.found(whole.run({"picture": picture})) for picture in data.pictures]
    table = {mode: _precision(each, data) for mode, each in found.items()}
    return table, _precision(seen, data)


def _precision(found: Sequence[Detections], data: SplitData) -> float:
    """mAP@0.5; 0 where nothing is to be found."""
    made = mean_average_precision(found, data.truth, len(data.classes), [0.5])
    return 0.0 if np.isnan(made) else made


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
