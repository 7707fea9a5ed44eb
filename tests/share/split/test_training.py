"""Training: the sandwich, statistics taken anew, a killed run, the same seed, what it is refused for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from haversack.core.errors import UserError
from haversack.models.vision._average_precision import Truth
from haversack.models.vision._slim_record import SplitNet
from haversack.models.vision._slim_student_torch import measures, normed, sum_of
from haversack.models.vision._slim_teacher_torch import Teacher
from haversack.models.vision._spots_torch import assigned, generalized_iou
from haversack.models.vision.slimmable import quantize, restore
from haversack.models.vision.slimmable_torch import (
    Distilling,
    Student,
    _resumed,
    distil,
    mode_number,
    modes_of,
)
from haversack.models.vision.width_slimmable_torch import (
    WIDTHS,
    WidthStudent,
    compression,
    products,
    sent_channels,
)
from haversack.share._split_data import SplitData, made, read_data
from haversack.share._split_train_torch import kept_teacher, teacher_of_pack, train_split
from haversack.share.slimmable import Slimmable

TINY = Slimmable(teacher_steps=3, steps=3, rows=4)


def pictures(count: int = 24, seed: int = 0) -> SplitData:
    """Squares of two colours at known places."""
    draw = np.random.default_rng(seed)
    shown = draw.integers(0, 60, (count, 32, 32, 3)).astype(np.uint8)
    truth = []
    for one in shown:
        x, y, kind = (int(draw.integers(0, high)) for high in (16, 16, 2))
        one[y : y + 16, x : x + 16, kind] = 250
        truth.append(Truth(np.array([[x, y, x + 16, y + 16]], np.float32), np.array([kind])))
    return SplitData("detect", ("red", "green"), shown, tuple(truth))


def test_the_sandwich_has_the_smallest_and_the_largest() -> None:
    draw = np.random.default_rng(0)
    seen = [Distilling(copies=3).modes(modes_of(4), draw) for _ in range(50)]
    assert all(modes[:2] == [(1, 1), (4, 4)] and len(modes) == 3 for modes in seen)
    assert len({modes[2] for modes in seen}) > 8
    loose = [Distilling(copies=3, sandwich=False).modes(modes_of(4), draw) for _ in range(50)]
    assert any((1, 1) not in modes for modes in loose) and {len(set(modes)) for modes in loose} == {3}
    assert Distilling(static=(2, 4)).modes(modes_of(4), draw) == [(2, 4)]
    assert [mode_number(mode) for mode in modes_of(4)] == list(range(16))


def test_the_quantizer_of_training_is_the_one_that_ships(detector) -> None:
    y = torch.from_numpy(np.random.default_rng(1).normal(0, 2, (1, 6, 12, 12)).astype(np.float32))
    from haversack.models.vision.slimmable import learned_range, levels_of

    for bits in (1, 2, 3, 4):
        low, step = learned_range(y[0].numpy(), bits, levels_of(detector.tensors)[bits - 1])
        wanted = restore(quantize(y[0].numpy(), bits, low, step), low, step)
        with torch.no_grad():
            assert np.allclose(detector.student.sent(y, bits)[0].numpy(), wanted, atol=1e-5)
    values = y.clone().requires_grad_(True)
    detector.student.sent(values, 2).sum().backward()
    inside = values.grad != 0
    assert 0.5 < float(inside.float().mean()) < 1.0, "gradients pass within the clip alone"
    assert torch.allclose(values.grad[inside], torch.ones(()), atol=1e-5)


def test_statistics_are_plain_means_over_the_batches() -> None:
    data, net = pictures(), SplitNet("detect", ("red", "green"), 32)
    how = Distilling(steps=1, rows=4, recalibration=3, seed=5)
    torch.manual_seed(0)
    student = Student(net)
    distil(Teacher(net), student, data.pictures, how)
    draw = np.random.default_rng([5, 2])
    batches = [normed(data.pictures[draw.integers(0, len(data), 64)]) for _ in range(3)]
    for mode in ((1, 1), (3, 2), (4, 4)):
        with torch.no_grad():
            made_ = [torch.stack(student.outputs(x, mode[0])).sum(0) for x in batches]
            values = [student.convs[0](student.sent(y, mode[1])).mean((0, 2, 3)) for y in made_]
        assert torch.allclose(
            student.norms[0].mean[mode_number(mode)], torch.stack(values).mean(0), atol=1e-3
        )
    assert all(each.requires_grad for each in student.parameters())
    for member in student.members:  # its first norm reads the picture, its last what the others have normed
        with torch.no_grad():
            seen = torch.stack([member[0].conv(x).mean((0, 2, 3)) for x in batches]).mean(0)
        assert torch.allclose(member[0].norm.running_mean, seen, atol=1e-4)


def test_what_ships_says_what_learned() -> None:
    """With the statistics taken anew an encoder gives what it gave with those of its batches."""
    data = pictures(64)
    torch.manual_seed(0)
    student = Student(SplitNet("detect", data.classes, 32))
    distil(Teacher(student.net), student, data.pictures, Distilling(steps=3, rows=8, recalibration=4))
    x = normed(data.pictures)
    with torch.no_grad():
        found = student.outputs(x, 4)
        measures(student, True)
        wanted = student.learning(x, 4)
    for one, other in zip(found, wanted, strict=True):
        assert float((one - other).std() / other.std()) < 0.15


def test_members_side_by_side_are_the_members_one_by_one() -> None:
    torch.manual_seed(3)
    student = Student(SplitNet("detect", ("red", "green"), 32))
    measures(student, True)
    x = normed(pictures(6).pictures)
    for k in (1, 3, 4):
        apart, beside = student.outputs(x, k), student.learning(x, k)
        for one, other in zip(apart, beside, strict=True):
            assert torch.allclose(one, other, atol=1e-4)
        torch.stack(apart).square().sum().backward()
        wanted = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
        student.zero_grad()
        torch.stack(beside).square().sum().backward()
        found = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
        assert set(found) == set(wanted)
        for name, gradient in wanted.items():
            size = float(gradient.abs().max())
            assert torch.allclose(found[name], gradient, atol=1e-3 * size + 1e-3), name
        student.zero_grad()


def test_a_killed_student_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    data, net = pictures(), SplitNet("detect", ("red", "green"), 32)
    torch.manual_seed(0)
    teacher = Teacher(net)

    class KilledError(Exception):
        pass

    def student() -> Student:
        torch.manual_seed(1)
        return Student(net)

    def kill(text: str) -> None:
        if text.startswith("step 4 "):
            raise KilledError

    how = Distilling(steps=5, rows=2, recalibration=1, kept_every=2)
    keep = tmp_path / "student.pt"
    whole, again = student(), student()
    distil(teacher, whole, data.pictures, how)
    with pytest.raises(KilledError):
        distil(teacher, student(), data.pictures, how, kill, keep)
    said: list[str] = []
    distil(teacher, again, data.pictures, how, said.append, keep)
    assert said and all(not text.startswith("step 2 ") for text in said), "it did not begin anew"
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    fresh = student()
    optimizer = torch.optim.Adam(fresh.parameters())
    assert _resumed(fresh, optimizer, how, keep) == 4
    for steps in (3, 4, 100):
        assert _resumed(fresh, optimizer, replace(how, steps=steps), keep) == 0, "it has begun to descend"


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    how = Distilling(steps=400, descent=0.5)
    factors = [how.factor(step) for step in range(400)]
    assert factors[:2] == [0.02, 0.04] and factors[49] == factors[100] == factors[200] == 1
    assert factors[300] == pytest.approx(0.5) and factors[399] == pytest.approx(0.005)


def test_the_same_seed_gives_the_same_pack_and_a_killed_run_goes_on(tmp_path: Path) -> None:
    known, held = pictures().divided(0)
    said: list[str] = []
    one = train_split(known, held, TINY, tmp_path, said.append)
    again = train_split(known, held, TINY, tmp_path, said.append)
    assert "the teacher was trained before" in said
    assert all((one.tensors[name] == again.tensors[name]).all() for name in one.tensors)
    assert set(one.table) == set(modes_of(4)) and all(0 <= value <= 1 for value in one.table.values())
    other = kept_teacher(one.net, held, TINY, tmp_path)
    assert not torch.equal(other.final.weight, one.teacher.final.weight), "other pictures, another teacher"


def test_the_student_learns_its_teacher() -> None:
    data = pictures(48)
    net = SplitNet("detect", data.classes, 32)
    torch.manual_seed(1)
    teacher, student = Teacher(net), Student(net)
    said: list[str] = []
    how = Distilling(steps=40, rows=4, recalibration=1, kept_every=10)
    distil(teacher, student, data.pictures, how, said.append)
    first, last = (float(text.rpartition(" ")[2]) for text in (said[0], said[-1]))
    assert last < 0.8 * first


def test_the_predecessor_s_widths_and_bytes() -> None:
    assert [sent_channels(width) for width in WIDTHS] == list(range(3, 13))
    assert compression(3, 204, 800) == pytest.approx(0.065025)
    assert products(96) == 3 * 24 * 9 * 48**2 + (24 * 40 + 40 * 12) * 9 * 24**2


def test_the_predecessor_learns_and_sends_nothing_beyond_its_width() -> None:
    data = pictures(48)
    net = SplitNet("detect", data.classes, 32)
    torch.manual_seed(1)
    teacher, student = Teacher(net), WidthStudent(net)
    x = normed(data.pictures[:8])

    def error() -> float:
        measures(student, True)
        return float((student(x, (12, 8)) - teacher.head_of(x)).detach().square().mean())

    before = error()
    distil(teacher, student, data.pictures, Distilling(steps=20, rows=4, recalibration=1))
    assert error() < 0.8 * before
    measures(student, False)
    x = normed(data.pictures[:2])
    with torch.no_grad():
        whole = student.members(x)
        y = sum_of(student.outputs(x, 3))
        assert torch.equal(y[:, :3], whole[:, :3]) and not y[:, 3:].any()
        sent = student.sent(y, 8)
        assert float((sent - y)[:, :3].abs().max()) <= float(y.max() - y.min()) / 2**8
        spoilt = sent.clone()
        spoilt[:, 3:] = 1e3
        assert torch.equal(student.decode(sent, (3, 8)), student.decode(spoilt, (3, 8)))
        assert not torch.equal(student(x, (3, 8)), student(x, (12, 8)))


def test_a_teacher_of_other_classes_is_refused(detector) -> None:
    with pytest.raises(UserError, match="is for detect"):
        teacher_of_pack(str(detector.path), pictures())
    given = SplitData("detect", detector.record.classes, np.zeros((4, 48, 48, 3), np.uint8))
    assert torch.equal(teacher_of_pack(str(detector.path), given).final.bias, detector.teacher.final.bias)


def test_cells_belong_to_the_smallest_box_about_them() -> None:
    boxes = np.array([[0, 0, 32, 32], [8, 8, 24, 24]], np.float32)
    kinds, goals = assigned(boxes, np.array([5, 7]), 32)
    grid = kinds.reshape(4, 4)
    assert grid[1, 1] == grid[2, 2] == 7 and grid[0, 0] == -1
    assert goals.reshape(4, 4, 4)[1, 2].tolist() == [8, 8, 24, 24]
    assert (assigned(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), 32)[0] == -1).all()
    a, b = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[20.0, 0, 30, 10]])
    assert generalized_iou(a, a).item() == pytest.approx(1.0)
    assert generalized_iou(a, b).item() == pytest.approx(-1 / 3)


def test_made_pictures_are_whole_and_repeat() -> None:
    one, same, test = made(20, 3), made(20, 3), made(20, 3, "test")
    assert (one.pictures == same.pictures).all() and not (one.pictures == test.pictures).all()
    for each in one.truth:
        assert 1 <= len(each.labels) <= 3 and each.boxes.min() >= 0 and each.boxes.max() <= 96
    with pytest.raises(UserError, match="part"):
        made(1, 0, "all")


def test_a_folder_with_annotations_is_read_and_too_few_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    from haversack.formats.coco import Coco, CocoImage, write_coco

    Image.fromarray(np.full((20, 80, 3), 90, np.uint8)).save(tmp_path / "a.png")
    box = np.array([[40, 0, 80, 20]], np.float32)
    image = CocoImage(1, "a.png", 80, 20, box, np.array([0]), np.array([False]))
    write_coco(tmp_path / "t.json", Coco(("cat",), (1,), (image,)))
    data = read_data(tmp_path, tmp_path / "t.json", 48)
    assert data.pictures.shape == (1, 48, 48, 3) and data.truth[0].boxes.tolist() == [[24, 0, 48, 12]]
    assert (data.pictures[0, :12] == 90).all() and (data.pictures[0, 12:] == 128).all()
    with pytest.raises(UserError, match="too few"):
        data.divided(0)
