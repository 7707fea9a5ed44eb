"""Mean average precision against a plain second writing of COCO's rules, and against numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest

from haversack.formats.coco import Detections
from haversack.models.vision._average_precision import THRESHOLDS, Truth, mean_average_precision
from haversack.models.vision._spots import detections, overlaps, suppressed


def found(boxes, scores, labels) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    )


def iou(a, b, crowd=False) -> float:
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    one, other = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return wide * high / (one if crowd else one + other - wide * high)


def plain(found_, truth, classes, thresholds) -> float:
    """Detection by detection, recall by recall."""
    values = []
    for kind in range(classes):
        total = sum(
            int(label == kind and not (one.crowd is not None and one.crowd[at]))
            for one in truth
            for at, label in enumerate(one.labels)
        )
        if not total:
            continue
        for threshold in thresholds:
            marks = []
            for one, other in zip(found_, truth, strict=True):
                own = sorted(
                    (at for at in range(len(one)) if one.labels[at] == kind), key=lambda at: -one.scores[at]
                )
                taken = set()
                for at in own[:100]:
                    best, place, swallowed = threshold, None, False
                    for spot in range(len(other.labels)):
                        if other.labels[spot] != kind:
                            continue
                        crowd = bool(other.crowd is not None and other.crowd[spot])
                        value = iou(one.boxes[at], other.boxes[spot], crowd)
                        if crowd:
                            swallowed = swallowed or value >= threshold
                        elif spot not in taken and value >= best:
                            best, place = value, spot
                    if place is not None:
                        taken.add(place)
                        marks.append((one.scores[at], 1))
                    elif not swallowed:
                        marks.append((one.scores[at], 0))
            marks.sort(key=lambda mark: -mark[0])
            right, curve = 0, []
            for number, (_, hit) in enumerate(marks, 1):
                right += hit
                curve.append((right / total, right / number))
            values.append(
                np.mean(
                    [
                        max((p for r, p in curve if r >= recall), default=0.0)
                        for recall in np.linspace(0, 1, 101)
                    ]
                )
            )
    return float(np.mean(values)) if values else float("nan")


@pytest.mark.parametrize("seed", range(12))
def test_it_is_what_the_rules_say(seed: int) -> None:
    draw = np.random.default_rng(seed)
    every, truth = [], []
    for _ in range(15):
        count = int(draw.integers(0, 5))
        low = draw.uniform(0, 60, (count, 2))
        boxes = np.concatenate([low, low + draw.uniform(8, 40, (count, 2))], 1).astype(np.float32)
        labels = draw.integers(0, 3, count)
        crowd = draw.random(count) < 0.15 if seed % 2 else None
        truth.append(Truth(boxes, labels, crowd))
        shaken = boxes[draw.random(count) < 0.8]
        many = len(shaken) + int(draw.integers(0, 4))
        extra = draw.uniform(0, 90, (many - len(shaken), 2))
        noisy = np.concatenate(
            [shaken + draw.normal(0, 3, shaken.shape), np.concatenate([extra, extra + 10], 1)]
        )
        scores = draw.permutation(1000)[:many] / 1000
        every.append(found(noisy, scores, draw.integers(0, 3, many)))
    for thresholds in ([0.5], THRESHOLDS):
        assert mean_average_precision(every, truth, 3, thresholds) == pytest.approx(
            plain(every, truth, 3, thresholds)
        )


def test_numbers_by_hand() -> None:
    box = [0, 0, 10, 10]
    truth = [Truth(np.array([box], np.float32), np.array([0]))]
    right = found([box], [0.9], [0])
    assert mean_average_precision([right], truth, 2, [0.5]) == 1.0
    twice = found([box, box], [0.9, 0.8], [0, 0])
    assert mean_average_precision([twice], truth, 2, [0.5]) == 1.0, "behind full recall nothing counts"
    late = found([[50, 50, 60, 60], box], [0.9, 0.8], [0, 0])
    assert mean_average_precision([late], truth, 2, [0.5]) == pytest.approx(0.5)
    assert mean_average_precision([found([], [], [])], truth, 2) == 0.0
    nothing = [Truth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))]
    assert np.isnan(mean_average_precision([right], nothing, 2))
    with pytest.raises(ValueError, match="judged against"):
        mean_average_precision([], truth, 2)


def test_of_overlapping_boxes_of_a_class_the_surest_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [30, 30, 40, 40]], float)
    assert suppressed(boxes, np.array([0, 0, 1, 0]), 0.5).tolist() == [0, 2, 3]
    assert overlaps(boxes[:1], boxes[1:2])[0, 0] == pytest.approx(90 / 110)
    assert len(suppressed(np.zeros((0, 4)), np.zeros(0, np.int64), 0.5)) == 0


def test_a_cell_s_numbers_are_a_box() -> None:
    logits = np.full((3 + 4, 6, 6), -9.0, np.float32)
    logits[1, 2, 4] = 3.0
    logits[3:, 2, 4] = 0.0
    one = detections(logits, 3)
    assert one.labels.tolist() == [1] and one.scores[0] == pytest.approx(1 / (1 + np.exp(-3)))
    assert one.boxes[0].tolist() == [36 - 16, 20 - 16, 48.0, 36.0], "cut at the picture's edge"
