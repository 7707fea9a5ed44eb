"""Faster R-CNN: torchvision's numbers with drawn weights, anchors, RoIAlign and suppression by brute force,
and checkpoints that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.record_detectors import OUTPUTS, RECORDINGS, SIDE, narrow_shapes, picture, sample

from haversack.bench.slimmable_split_encoders._checkpoints import drawn, faster_rcnn_shapes
from haversack.core.errors import UserError
from haversack.models.vision import faster_rcnn
from haversack.models.vision._boxes import moved, rows_of, standing
from haversack.models.vision._detector_maps import MisfitError
from haversack.models.vision._detector_record import (
    Detector,
    columns_of,
    named,
    read_detector,
)
from haversack.models.vision._detector_torch import DetectorTeacher
from haversack.models.vision._slim_onnx import look_onnx, teacher_onnx
from haversack.models.vision._slim_record import SplitNet
from haversack.models.vision._slim_student_torch import normed
from haversack.share._split_halves import ServerHalf, session
from haversack.share._split_pack import rounded

HERE = Path("checkpoint.pth")


def network(old: bool) -> tuple[SplitNet, dict[str, np.ndarray]]:
    family, tensors = read_detector(HERE, drawn(narrow_shapes(old), int(old)))
    assert family == "faster-rcnn"
    shapes = {name: each.shape for name, each in tensors.items()}
    detector = Detector(family=family, shapes=shapes, columns=tuple(range(1, OUTPUTS)))
    return SplitNet("detect", tuple("abcdef"), SIDE, 4, detector), named(tensors)


@pytest.mark.parametrize("old", [True, False])
def test_every_stage_and_the_detections_are_torchvision_s(old: bool) -> None:
    wanted = np.load(RECORDINGS / f"faster-rcnn{'-old' if old else ''}.npz")
    net, tensors = network(old)
    teacher = DetectorTeacher(net, tensors)
    with torch.no_grad():
        stages = teacher.stages(teacher.head_of(normed(picture(SIDE)[None])))
        said = {name: each[0].numpy() for name, each in teacher.answers(stages[0]).items()}
    assert stages[0].shape[1:] == (32, SIDE // 4, SIDE // 4)
    for at, stage in enumerate(stages):
        close(stage, wanted[f"stage{at}"])
    for name, each in said.items():
        close(each, wanted[name])
    boxes = faster_rcnn.proposals(said, SIDE)
    assert len(boxes) == len(wanted["proposals"]) > 100
    apart = np.abs(boxes[:, None] - wanted["proposals"][None]).max(2)
    assert apart.min(0).max() < 0.02 and apart.min(1).max() < 0.02, "but for the order of near ties"
    look = ServerHalf(net, teacher_onnx(net, tensors), look_onnx(net, tensors), 1, "")._looked
    found = faster_rcnn.found(said, net.detector.columns, SIDE, look)
    assert len(found) == len(wanted["scores"]) >= 50
    assert np.allclose(found.scores, wanted["scores"], atol=1e-4)
    for box, score, label in zip(wanted["boxes"], wanted["scores"], wanted["labels"], strict=True):
        apart = np.abs(found.boxes - box).max(1) + 100 * (found.labels + 1 != label)
        assert apart.min() < 0.02 and abs(found.scores[apart.argmin()] - score) < 1e-3


def close(given: object, wanted: np.ndarray) -> None:
    """Within 1e-4 of the largest number."""
    assert np.abs(sample(given) - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_the_graph_says_what_the_module_says() -> None:
    net, tensors = network(False)
    tensors = rounded(tensors)
    teacher = DetectorTeacher(net, tensors)
    shown = picture(SIDE)
    half = ServerHalf(net, teacher_onnx(net, tensors), look_onnx(net, tensors), 1, "")
    said = half.run({"picture": shown})
    with torch.no_grad():
        wanted = teacher.answers(teacher.head_of(normed(shown[None])))
    for name, each in wanted.items():
        assert np.abs(said[name] - each[0].numpy()).max() <= 1e-4 * float(each.abs().max()), name
    assert len(half.found(said)) and set(half.found(said).labels) <= set(range(6))
    few = ServerHalf(
        SplitNet("detect", ("e", "b"), SIDE, 4, few_columns(net.detector)), *graphs(net, tensors)
    )
    again, both = few.found(said), half.found(said)
    assert set(again.labels) <= {0, 1}
    for label, at in ((0, 4), (1, 1)):
        own = both.scores[both.labels == at]
        assert np.allclose(again.scores[again.labels == label][: len(own)], own)


def few_columns(detector: Detector) -> Detector:
    return Detector(family=detector.family, shapes=detector.shapes, columns=(5, 2))


def graphs(net: SplitNet, tensors: dict[str, np.ndarray]) -> tuple[bytes, bytes | None, int, str]:
    return teacher_onnx(net, tensors), look_onnx(net, tensors), 1, ""


def test_regions_are_averaged_as_the_paper_says() -> None:
    """RoIAlign by the definition: 2 x 2 points a cell, bilinear, no half pixel."""
    net, tensors = network(False)
    draw = np.random.default_rng(0)
    look = session(look_onnx(net, tensors), 1, "")
    maps = {
        f"p{at + 2}": draw.normal(0, 1, (1, 16, 32 >> at, 32 >> at)).astype(np.float32) for at in range(4)
    }
    rois = {f"rois_{name}": np.zeros((0, 4), np.float32) for name in maps}
    rois["rois_p2"] = np.array([[3.3, 10.1, 40.7, 60.2], [100, 90, 128, 128]], np.float32)
    rois["rois_p4"] = np.array([[0, 0, 128, 128]], np.float32)
    names = [each.name for each in look.get_outputs()]
    given = dict(zip(names, look.run(None, {**maps, **rois}), strict=True))
    pooled = [align(maps["p2"][0], box / 4) for box in rois["rois_p2"]]
    pooled += [align(maps["p4"][0], box / 16) for box in rois["rois_p4"]]
    x = np.stack(pooled).reshape(3, -1)
    for name in ("hidden.0", "hidden.1"):
        weight = rounded(tensors)[f"teacher.{name}.weight"]
        x = np.maximum(x @ weight.reshape(len(weight), -1).T + tensors[f"teacher.{name}.bias"], 0)
    for name in ("classes", "boxes"):
        weight = rounded(tensors)[f"teacher.{name}.weight"]
        wanted = x @ weight.reshape(len(weight), -1).T + tensors[f"teacher.{name}.bias"]
        assert np.allclose(given[name].reshape(3, -1), wanted, atol=1e-4)


def align(feature: np.ndarray, box: np.ndarray) -> np.ndarray:
    x0, y0, x1, y1 = box
    wide, high = max(x1 - x0, 1) / 7, max(y1 - y0, 1) / 7
    made = np.zeros((len(feature), 7, 7))
    for row in range(7):
        for column in range(7):
            for at in range(4):
                y = y0 + (row + (at // 2 + 0.5) / 2) * high
                x = x0 + (column + (at % 2 + 0.5) / 2) * wide
                made[:, row, column] += bilinear(feature, y, x) / 4
    return made


def bilinear(feature: np.ndarray, y: float, x: float) -> np.ndarray:
    side = feature.shape[1]
    if y < -1 or x < -1 or y > side or x > side:
        return np.zeros(len(feature))
    y, x = max(y, 0), max(x, 0)
    top, left = min(int(y), side - 1), min(int(x), side - 1)
    below, right = min(top + 1, side - 1), min(left + 1, side - 1)
    v, h = (0 if top == below else y - top), (0 if left == right else x - left)
    return (
        (1 - v) * (1 - h) * feature[:, top, left]
        + (1 - v) * h * feature[:, top, right]
        + v * (1 - h) * feature[:, below, left]
        + v * h * feature[:, below, right]
    )


def test_anchors_lie_about_the_places() -> None:
    found = faster_rcnn.anchors(0, 3, 12).reshape(3, 3, 3, 4)
    assert found[0, 0].tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    assert (found[2, 1] - found[0, 0]).tolist() == [[4, 8, 4, 8]] * 3
    sides = found[..., 2:] - found[..., :2]
    assert np.allclose(sides.prod(-1), 32**2, rtol=0.02)
    output = np.arange(2 * 3 * 4 * 4).reshape(6, 4, 4).astype(np.float32)
    rows = rows_of(output, 2)
    assert all(
        rows[(y * 4 + x) * 3 + a, n] == output[2 * a + n, y, x]
        for y in (0, 3)
        for x in (1, 2)
        for a in range(3)
        for n in range(2)
    )


def test_boxes_are_moved_and_suppressed_by_the_definition() -> None:
    draw = np.random.default_rng(1)
    corners = draw.uniform(0, 60, (200, 2))
    boxes = np.concatenate([corners, corners + draw.uniform(5, 40, (200, 2))], 1).astype(np.float32)
    scores, kinds = draw.uniform(0, 1, 200).astype(np.float32), draw.integers(0, 3, 200)
    kept = standing(boxes, scores, kinds, 0.5, 1000)
    slow: list[int] = []
    for at in np.argsort(-scores):
        if all(kinds[at] != kinds[one] or share(boxes[at], boxes[one]) <= 0.5 for one in slow):
            slow.append(int(at))
    assert kept.tolist() == slow and 100 < len(slow) < 180
    assert standing(boxes, scores, kinds, 0.5, 7).tolist() == slow[:7]
    assert len(standing(boxes[:0], scores[:0], kinds[:0], 0.5, 7)) == 0
    still = moved(boxes, np.zeros_like(boxes), (10, 10, 5, 5))
    assert np.allclose(still, boxes, atol=1e-4)
    one, deltas = np.array([[0, 0, 10, 20]], np.float32), np.array([[1, 0, 99, 5 * np.log(2)]], np.float32)
    wide = moved(one, deltas, (10, 10, 5, 5))
    assert np.allclose(wide, [[6 - 312.5, -10, 6 + 312.5, 30]], rtol=1e-4)


def share(one: np.ndarray, other: np.ndarray) -> float:
    both = np.clip(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0, None).prod()
    return float(both / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - both))


def test_regions_go_to_the_level_of_their_size() -> None:
    sides = np.array([1, 111, 112, 223, 224, 447, 448, 2000], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], 1)
    assert faster_rcnn.levels_of(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_public_file_s_sizes() -> None:
    """torchvision says 41,755,286 parameters of its fasterrcnn_resnet50_fpn, without its frozen norms."""
    shapes = faster_rcnn_shapes()
    norms = sum(shape[0] for name, shape in shapes.items() if name.endswith("running_mean"))
    assert norms == 26560
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 41_755_286 + 4 * norms


def test_names_that_are_missing_left_over_or_wrong_are_told() -> None:
    whole = drawn(narrow_shapes(True))
    lacks = {name: each for name, each in whole.items() if "layer3.2.bn2" not in name}
    with pytest.raises(UserError, match=r"it lacks backbone\.body\.layer3\.2\.bn2\.weight"):
        read_detector(HERE, lacks)
    with pytest.raises(UserError, match=r"it has besides roi_heads\.mask_head\.x"):
        read_detector(HERE, whole | {"roi_heads.mask_head.x": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="no detector that is known"):
        read_detector(HERE, {"fc.weight": np.zeros((3, 3), np.float32)})
    bent = whole | {"backbone.fpn.inner_blocks.2.weight": np.zeros((16, 64, 1, 1), np.float32)}
    with pytest.raises(UserError, match=r"inner\.2|do not add up|come in"):
        read_detector(HERE, bent)
    sick = whole | {"rpn.head.conv.bias": np.full(16, np.nan, np.float32)}
    with pytest.raises(UserError, match="no number"):
        read_detector(HERE, sick)
    counted = whole | {"backbone.body.bn1.num_batches_tracked": np.zeros((), np.float32)}
    assert read_detector(HERE, counted)[0] == "faster-rcnn"


def test_classes_are_found_by_order_or_by_number() -> None:
    assert columns_of(HERE, 3, 1, ("a", "b", "c"), (0, 1, 2)) == (1, 2, 3)
    assert columns_of(HERE, 90, 1, ("person", "toothbrush"), (1, 90)) == (1, 90)
    assert columns_of(HERE, 90, 0, ("person", "toothbrush"), (1, 90)) == (0, 89)
    for classes, categories in ((("a", "b"), (0, 4)), (("a", "b"), (1, 91)), (("a", "b"), ())):
        with pytest.raises(UserError, match="90 classes"):
            columns_of(HERE, 90, 1, classes, categories)


def test_a_record_that_does_not_hold_is_refused() -> None:
    net, _ = network(True)
    shapes = dict(net.detector.shapes)
    assert net.detector.check(SIDE).products > 1e6
    for wrong in (
        {"family": "yolo"},
        {"columns": (7,)},
        {"columns": ()},
        {"deviation": (0.2, 0.0, 0.2)},
        {"mean": (0.2, float("nan"), 0.2)},
        {"shapes": shapes | {"spare.weight": (1, 1, 1, 1)}},
        {"shapes": shapes | {"conv1.weight": (1 << 40, 3, 7, 7)}},
        {
            "shapes": {name: shape for name, shape in shapes.items() if name != "boxes.bias"}
            | {"boxes.bias": (1,)}
        },
    ):
        fields = {"family": "faster-rcnn", "shapes": shapes, "columns": (1,)} | wrong
        with pytest.raises(MisfitError):
            Detector(**fields).check(SIDE)
    with pytest.raises(MisfitError, match="pixels"):
        net.detector.check(SIDE + 16)
