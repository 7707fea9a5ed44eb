"""A split network with drawn weights, small and whole, for everything here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from haversack.models.vision._slim_record import SplitNet
from haversack.models.vision._slim_student_torch import measures
from haversack.models.vision._slim_teacher_torch import Teacher
from haversack.models.vision.slimmable_torch import Student, modes_of, modules_of, tensors_of
from haversack.share._split_pack import SplitRecord, rounded, write_split

SIDE = 48


@dataclass(frozen=True)
class Drawn:
    """A pack with the modules that its tensors came from."""

    path: Path
    record: SplitRecord
    teacher: Teacher
    student: Student
    tensors: dict[str, Any]
    picture: Any


def drawn(folder: Path, task: str = "detect", seed: int = 0, members: int = 4) -> Drawn:
    torch.manual_seed(seed)
    net = SplitNet(task, ("ball", "cup", "dog"), SIDE, members)
    teacher, student = Teacher(net).eval(), Student(net)
    with torch.no_grad():
        for module in (*teacher.modules(), *student.modules()):
            if isinstance(getattr(module, "running_mean", None), torch.Tensor):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
        for norm in student.norms:
            norm.mean.normal_(0, 0.2)
            norm.variance.uniform_(0.5, 2)
        teacher.final.bias.zero_()
    measures(student, False)
    table = {(k, b): 0.1 * k + 0.05 * b for k, b in modes_of(members)}
    tensors = rounded(tensors_of(teacher, student))
    teacher, student = modules_of(net, tensors)
    path = folder / f"{task}-{seed}.pack"
    record = write_split(path, net, student.gain, tensors, table, 0.9, "mAP@0.5", {})
    picture = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    return Drawn(path, record, teacher, student, tensors, picture)


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return drawn(tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return drawn(tmp_path_factory.mktemp("split"), "classify", 1)


@pytest.fixture
def served(detector: Drawn) -> Iterator[Any]:
    from haversack.share._split_halves import SplitServer
    from haversack.share._split_serve import split_service

    service, board = split_service(SplitServer(detector.path))
    service.start()
    service.board = board
    yield service
    service.stop(2.0)
