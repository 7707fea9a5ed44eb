"""A published detector as the frozen teacher: what a student learns of it, and that both halves say what
the modules say."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from haversack.bench.slimmable_split_encoders._checkpoints import (
    drawn,
    efficientdet_shapes,
    faster_rcnn_shapes,
)
from haversack.core.errors import DamagedFileError
from haversack.core.pack import Pack, PackWriter, check_pack
from haversack.models.vision._detector_record import Detector, named, read_detector
from haversack.models.vision._slim_record import SplitNet, costs
from haversack.models.vision._slim_student_torch import normed, sum_of
from haversack.models.vision.slimmable import payload_bytes, quantize, restore
from haversack.models.vision.slimmable_torch import (
    Distilling,
    Student,
    begin_at,
    distil,
    modes_of,
    modules_of,
    recalibrated_rows,
    teacher_of,
    tensors_of,
)
from haversack.share._split_halves import SlimEncoder, SplitServer, fed_with
from haversack.share._split_pack import open_split, read_record, rounded, split_findings, write_split

SIDE = {"faster-rcnn": 64, "efficientdet": 128}
SHAPES = {
    "faster-rcnn": faster_rcnn_shapes(16, 4, (1, 1, 1, 1), 8, 16, 4),
    "efficientdet": efficientdet_shapes("d0", width=0.25, pyramid=8, cells=1, repeats=1, outputs=3),
}
FIRST = {"faster-rcnn": 1, "efficientdet": 0}


def network(family: str) -> tuple[SplitNet, dict[str, np.ndarray]]:
    found, tensors = read_detector(Path("x.pth"), drawn(SHAPES[family], 1))
    assert found == family
    shapes = {name: each.shape for name, each in tensors.items()}
    columns = tuple(FIRST[family] + at for at in range(3))
    detector = Detector(family=family, shapes=shapes, columns=columns)
    return SplitNet("detect", ("a", "b", "c"), SIDE[family], 4, detector), rounded(named(tensors))


def pictures(side: int, count: int = 12) -> np.ndarray:
    """Blots of colour before noise."""
    draw = np.random.default_rng(0)
    shown = draw.integers(0, 80, (count, side, side, 3)).astype(np.uint8)
    for one in shown:
        for _ in range(4):
            x, y = draw.integers(0, side - 8, 2)
            one[y : y + int(draw.integers(4, 24)), x : x + int(draw.integers(4, 24))] = draw.integers(
                0, 256, 3
            )
    return shown


@pytest.mark.parametrize("family", ["faster-rcnn", "efficientdet"])
def test_a_student_learns_the_detector_s_features(family: str) -> None:
    net, tensors = network(family)
    teacher = teacher_of(net, tensors)
    torch.manual_seed(0)
    student = Student(net)
    assert student.convs[-1].out_channels == net.detector.split
    shown, said = pictures(net.side), []
    begin_at(teacher, student, shown, 0)
    frozen = {name: each.clone() for name, each in teacher.tensors().items()}
    how = Distilling(steps=60, rows=4, recalibration=1, kept_every=20)
    distil(teacher, student, shown, how, said.append)
    first, last = (float(text.rpartition(" ")[2]) for text in (said[0], said[-1]))
    assert last < 0.75 * first, said
    assert all(torch.equal(each, frozen[name]) for name, each in teacher.tensors().items())


def test_the_student_begins_with_the_feature_s_own_scale() -> None:
    net, tensors = network("efficientdet")
    teacher, student = teacher_of(net, tensors), Student(net)
    shown = pictures(net.side)
    begin_at(teacher, student, shown, 0)
    with torch.no_grad():
        wanted = teacher.head_of(normed(shown))
    deviation, mean = student.norms[-1].weight.detach(), student.norms[-1].bias.detach()
    assert torch.allclose(deviation, wanted.std((0, 2, 3)), rtol=0.1)
    assert torch.allclose(mean, wanted.mean((0, 2, 3)), atol=0.1 * float(wanted.std()))


@pytest.mark.parametrize("family", ["faster-rcnn", "efficientdet"])
def test_both_halves_say_what_the_modules_say(family: str, tmp_path: Path) -> None:
    net, tensors = network(family)
    torch.manual_seed(1)
    student = Student(net)
    with torch.no_grad():
        for norm in student.norms:
            norm.mean.normal_(0, 0.2)
            norm.variance.uniform_(0.5, 2)
    whole = rounded(tensors_of(teacher_of(net, tensors), student))
    table = {mode: 0.1 for mode in modes_of(4)}
    path = tmp_path / "p.pack"
    record = write_split(path, net, student.gain, whole, table, 0.2, "mAP@0.5", {})
    assert open_split(path)[1] == record and split_findings(path) == []
    encoder, server = SlimEncoder(path), SplitServer(path)
    teacher, held = modules_of(net, whole)
    picture = pictures(net.side, 1)[0]
    for mode in ((1, 1), (3, 2), (4, 4)):
        encoder.set_mode(*mode)
        cells, low, step = encoder.cells(picture)
        data = encoder.encode(picture)
        assert len(data) - 60 == payload_bytes(mode[1], net.side)
        said = server.half.run(fed_with(cells, low, step, *mode))
        with torch.no_grad():
            y = sum_of(held.outputs(normed(picture[None]), mode[0]))
            sent = torch.from_numpy(restore(cells, low, step))
            assert (cells != quantize(y[0].numpy(), mode[1], low, step)).mean() < 0.01, "but at cells' edges"
            wanted = teacher.answers(held.decode(sent[None], mode))
        for name, each in wanted.items():
            assert np.abs(said[name] - each[0].numpy()).max() <= 2e-4 * float(each.abs().max()), name
        frame, answer = server.decode(data)
        assert frame.seq == answer["seq"] and isinstance(answer["detections"], list)
    assert costs(net)["teacher"] > costs(net)["head"] > 0


def test_records_that_do_not_hold_are_refused(tmp_path: Path) -> None:
    net, tensors = network("faster-rcnn")
    whole = rounded(tensors_of(teacher_of(net, tensors), Student(net)))
    path = tmp_path / "p.pack"
    write_split(
        path, net, (1.0, 2.0, 1.0, 0.5), whole, {mode: 0.1 for mode in modes_of(4)}, 0.2, "mAP@0.5", {}
    )
    pack, record = open_split(path)
    detector = record.detector
    assert detector is not None
    for at, wrong in enumerate(
        (
            msgspec.structs.replace(detector, family="other"),
            msgspec.structs.replace(detector, columns=(1, 2)),
            msgspec.structs.replace(detector, shapes={**detector.shapes, "conv1.weight": (16, 3, 9, 9)}),
            msgspec.structs.replace(detector, shapes={"conv1.weight": (16, 3, 7, 7)}),
        )
    ):
        bent = tmp_path / f"bent-{at}.pack"
        with PackWriter(bent, kind="split") as writer:
            for name, entry in pack.tensors.items():
                writer.add_tensor(name, entry.kind, entry.shape, [bytes(pack.bytes(name))])
            fields = msgspec.to_builtins(msgspec.structs.replace(record, detector=wrong))
            writer.finish({"architecture": fields, "plan": {}, "provenance": {}})
        with pytest.raises(DamagedFileError):
            read_record(Pack.open(bent))
    (path / "regions.onnx").unlink()
    assert any("regions.onnx" in str(one) for one in check_pack(path))


def test_statistics_of_large_pictures_are_taken_over_fewer() -> None:
    assert [recalibrated_rows(side) for side in (48, 96, 192, 384, 1024)] == [64, 64, 16, 4, 1]
