"""EfficientDet: efficientdet-pytorch's numbers with drawn weights; fusion, padding and anchors by the
definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.record_detectors import RECORDINGS, SIDE, picture, sample, slim_shapes

from haversack.bench.slimmable_split_encoders._checkpoints import drawn, efficientdet_shapes
from haversack.core.errors import UserError
from haversack.models.vision import efficientdet
from haversack.models.vision._detector_maps import MisfitError, same_pads
from haversack.models.vision._detector_record import Detector, named, read_detector
from haversack.models.vision._detector_torch import DetectorTeacher, TorchMaps
from haversack.models.vision._slim_onnx import look_onnx, teacher_onnx
from haversack.models.vision._slim_record import SplitNet
from haversack.models.vision._slim_student_torch import normed
from haversack.share._split_halves import ServerHalf
from haversack.share._split_pack import rounded

HERE = Path("checkpoint.pth")


def network(shapes: dict[str, tuple[int, ...]], seed: int = 2) -> tuple[SplitNet, dict[str, np.ndarray]]:
    family, tensors = read_detector(HERE, drawn(shapes, seed))
    assert family == "efficientdet"
    held = {name: each.shape for name, each in tensors.items()}
    outputs = efficientdet.outputs_of(held)
    detector = Detector(family=family, shapes=held, columns=tuple(range(outputs)))
    return SplitNet("detect", tuple("abcdefghi"[:outputs]), SIDE, 4, detector), named(tensors)


def close(given: object, wanted: np.ndarray) -> None:
    """Within 1e-4 of the largest number."""
    assert np.abs(sample(given) - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_every_level_and_the_detections_are_the_port_s() -> None:
    wanted = np.load(RECORDINGS / "efficientdet.npz")
    net, tensors = network(slim_shapes())
    teacher = DetectorTeacher(net, tensors)
    with torch.no_grad():
        split, *stages = teacher.stages(teacher.head_of(normed(picture(SIDE)[None])))
        said = {name: each[0].numpy() for name, each in teacher.answers(split).items()}
    assert split.shape[1:] == (24, SIDE // 4, SIDE // 4) and len(stages) == 5
    close(split, wanted["split"])
    for at, tap in enumerate((0, 2, 4)):
        close(stages[tap], wanted[f"level{at}"])
    for name, each in said.items():
        close(each, wanted[name])
    found = efficientdet.found(said, net.detector.columns, SIDE, lambda fed: {}, 0.0)
    theirs = wanted["found"]
    theirs = theirs[((theirs[:, 2:4] - theirs[:, :2]) > 0.05).all(1)]
    assert len(found) == 100 and len(theirs) > 60
    ours = np.concatenate([found.boxes, found.scores[:, None], found.labels[:, None] + 1], 1)
    scale = np.array([1, 1, 1, 1, 100, 1000])
    apart = np.abs((ours[:, None] - theirs[None]) * scale).max(2).min(0)
    assert (apart < 0.05).mean() > 0.98, "but for pairs that share just 0.5"


def test_the_graph_says_what_the_module_says() -> None:
    net, tensors = network(efficientdet_shapes("d0", width=0.25, pyramid=8, cells=1, repeats=1, outputs=3))
    tensors = rounded(tensors)
    teacher = DetectorTeacher(net, tensors)
    half = ServerHalf(net, teacher_onnx(net, tensors), look_onnx(net, tensors), 1, "")
    said = half.run({"picture": picture(SIDE)})
    with torch.no_grad():
        wanted = teacher.answers(teacher.head_of(normed(picture(SIDE)[None])))
    for name, each in wanted.items():
        assert np.abs(said[name] - each[0].numpy()).max() <= 1e-4 * float(each.abs().max()), name
    found = half.found(said)
    assert len(found) and found.scores.min() >= efficientdet.LEAST and (np.diff(found.scores) <= 0).all()
    assert len(half.found(said, 0.5)) == (found.scores >= 0.5).sum()


def test_the_public_files_sizes() -> None:
    """The port says 3.88, 6.63 and 8.10 million parameters of tf_efficientdet_d0, d1 and d2."""
    for size, told in (("d0", 3.88), ("d1", 6.63), ("d2", 8.10)):
        shapes = efficientdet_shapes(size)
        learned = sum(int(np.prod(shape)) for name, shape in shapes.items() if "running" not in name)
        assert round(learned / 1e6, 2) == told


def test_fusion_is_normalized_fast() -> None:
    weights = np.array([2.0, -1.0, 0.5], np.float32)
    xs = [torch.full((1, 1, 2, 2), value) for value in (1.0, 10.0, 100.0)]
    maps = TorchMaps({"w": torch.from_numpy(efficientdet.fused(weights))}, {})
    assert torch.allclose(
        maps.weighted(xs, "w"), torch.full((1, 1, 2, 2), (2 * 1 + 0.5 * 100) / (2.5 + 1e-4))
    )
    assert efficientdet.fused(-np.ones(2, np.float32)).tolist() == [0, 0]


def test_a_cell_reads_down_and_up_again() -> None:
    assert efficientdet.nodes() == (
        (3, (3, 4)),
        (2, (2, 5)),
        (1, (1, 6)),
        (0, (0, 7)),
        (1, (1, 7, 8)),
        (2, (2, 6, 9)),
        (3, (3, 5, 10)),
        (4, (4, 11)),
    )


def test_padding_is_tensorflow_s() -> None:
    draw = np.random.default_rng(0)
    for side, kernel, stride in ((8, 3, 2), (7, 3, 2), (9, 5, 2), (6, 5, 1), (8, 3, 1), (5, 1, 2), (2, 5, 2)):
        x = draw.normal(0, 1, (side, side)).astype(np.float32)
        weight = draw.normal(0, 1, (kernel, kernel)).astype(np.float32)
        maps = TorchMaps({"c.weight": torch.from_numpy(weight)[None, None]}, {})
        given = maps.conv(torch.from_numpy(x)[None, None], "c", stride, same=True)[0, 0].numpy()
        pooled = maps.pooled(torch.from_numpy(x)[None, None], kernel, stride, same=True)[0, 0].numpy()
        out = -(-side // stride)
        before = max((out - 1) * stride + kernel - side, 0) // 2
        assert given.shape == pooled.shape == (out, out) and same_pads(side, kernel, stride)[0] == before
        for row in range(out):
            for column in range(out):
                total, most = 0.0, -np.inf
                for i in range(kernel):
                    for j in range(kernel):
                        y, z = row * stride + i - before, column * stride + j - before
                        if 0 <= y < side and 0 <= z < side:
                            total += weight[i, j] * x[y, z]
                            most = max(most, x[y, z])
                assert abs(given[row, column] - total) < 1e-4 and pooled[row, column] == most


def test_anchors_lie_about_the_middles() -> None:
    found = efficientdet.anchors(0, 2, 16).reshape(2, 2, 9, 4)
    assert found[0, 1, 0].tolist() == [12 - 16, 4 - 16, 12 + 16, 4 + 16]
    assert np.allclose(found[1, 0, 1], [4 - 22.4, 12 - 11.2, 4 + 22.4, 12 + 11.2])
    sides = found[0, 0, :, 2:] - found[0, 0, :, :2]
    assert np.allclose(sides[3], 32 * 2 ** (1 / 3)) and np.allclose(
        sides[8], 32 * 2 ** (2 / 3) * np.array([0.7, 1.4])
    )


def test_names_that_are_missing_left_over_or_wrong_are_told() -> None:
    shapes = efficientdet_shapes("d0", width=0.25, pyramid=8, cells=1, repeats=1, outputs=3)
    whole = drawn(shapes)
    lacks = {name: each for name, each in whole.items() if name != "class_net.bn_rep.0.3.bn.weight"}
    with pytest.raises(UserError, match=r"it lacks class_net\.bn_rep\.0\.3\.bn\.weight"):
        read_detector(HERE, lacks)
    with pytest.raises(UserError, match=r"it has besides fpn\.cell\.5\.x"):
        read_detector(HERE, whole | {"fpn.cell.5.x": np.zeros(3, np.float32)})
    bent = whole | {
        "fpn.cell.0.fnode.2.after_combine.conv.conv_pw.weight": np.zeros((8, 9, 1, 1), np.float32)
    }
    with pytest.raises(UserError, match=r"cells\.0\.2\.pointwise"):
        read_detector(HERE, bent)
    net, _ = network(shapes)
    for columns in ((3,), (-1,)):
        with pytest.raises(MisfitError, match="outputs"):
            Detector(family="efficientdet", shapes=net.detector.shapes, columns=columns).check(SIDE)
