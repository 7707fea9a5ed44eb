"""Mean average precision as COCO counts it.

Source: the rules of COCO's evaluation (Lin et al., 2014, and its published evaluator), written from what they
are. For each class and threshold of overlap, detections of all pictures from the surest on are matched to the
truth of their picture that they overlap most and that is not taken; precision is made falling and read at 101
recalls. Crowd boxes swallow any number of detections and count for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haversack.formats.coco import Detections

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALLS = np.linspace(0, 1, 101)
MOST = 100
"""Detections of a picture that count."""


class Truth(NamedTuple):
    """Boxes [m, 4], class numbers [m], and which of them are crowds [m] (None: none)."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_] | None = None


def mean_average_precision(
    found: Sequence[Detections],
    truth: Sequence[Truth],
    classes: int,
    thresholds: Sequence[float] = THRESHOLDS,
) -> float:
    """The mean over classes that the truth has and over `thresholds`, 0 to 1; nan where there is no truth.

    >>> mean_average_precision(found, truth, 6, [0.5])      # mAP@0.5
    """
    table = average_precisions(found, truth, classes, thresholds)
    known = ~np.isnan(table).all(0)
    return float(np.nanmean(table[:, known])) if known.any() else float("nan")


def average_precisions(
    found: Sequence[Detections], truth: Sequence[Truth], classes: int, thresholds: Sequence[float]
) -> NDArray[np.float64]:
    """[threshold, class]; nan for a class that the truth has not."""
    if len(found) != len(truth):
        raise ValueError(f"{len(found)} pictures were judged against the truth of {len(truth)}")
    table = np.full((len(thresholds), classes), np.nan)
    for kind in range(classes):
        table[:, kind] = _of_class(found, truth, kind, np.asarray(thresholds, np.float64))
    return table


def _of_class(
    found: Sequence[Detections], truth: Sequence[Truth], kind: int, thresholds: NDArray[np.float64]
) -> NDArray[np.float64]:
    scores: list[NDArray[np.float32]] = []
    right: list[NDArray[np.bool_]] = []
    ignored: list[NDArray[np.bool_]] = []
    total = 0
    for one, other in zip(found, truth, strict=True):
        mine = np.flatnonzero(one.labels == kind)
        mine = mine[np.argsort(-one.scores[mine], kind="stable")][:MOST]
        theirs = np.flatnonzero(other.labels == kind)
        crowd = np.zeros(len(theirs), bool) if other.crowd is None else other.crowd[theirs]
        total += int((~crowd).sum())
        hit, ignore = _matched(one.boxes[mine], other.boxes[theirs], crowd, thresholds)
        scores.append(one.scores[mine])
        right.append(hit)
        ignored.append(ignore)
    if not total:
        return np.full(len(thresholds), np.nan)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hits, ignore = np.concatenate(right, 1)[:, order], np.concatenate(ignored, 1)[:, order]
    return np.array([_area(hits[at][~ignore[at]], total) for at in range(len(thresholds))])


def _matched(
    boxes: NDArray[np.float32],
    truth: NDArray[np.float32],
    crowd: NDArray[np.bool_],
    thresholds: NDArray[np.float64],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections [threshold, n] are right, and which count for nothing."""
    right = np.zeros((len(thresholds), len(boxes)), bool)
    ignored = np.zeros_like(right)
    if not len(boxes) or not len(truth):
        return right, ignored
    shared = _shares(boxes.astype(np.float64), truth.astype(np.float64), crowd)
    for row, threshold in enumerate(thresholds):
        taken = np.zeros(len(truth), bool)
        for at in range(len(boxes)):
            own = np.where(taken | crowd, -1.0, shared[at])
            best = int(len(own) - 1 - own[::-1].argmax())
            if own[best] >= min(threshold, 1 - 1e-10):
                right[row, at] = taken[best] = True
            elif crowd.any() and shared[at, crowd].max() >= threshold:
                ignored[row, at] = True
    return right, ignored


def _shares(
    boxes: NDArray[np.float64], truth: NDArray[np.float64], crowd: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """IoU; with a crowd what both share of the detection alone."""
    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(2)
    mine, theirs = ((box[:, 2:] - box[:, :2]).prod(1) for box in (boxes, truth))
    whole = np.where(crowd[None], mine[:, None], mine[:, None] + theirs[None] - both)
    return np.asarray(both / np.maximum(whole, 1e-12))


def _area(hits: NDArray[np.bool_], total: int) -> float:
    """Mean precision at the recalls, precision made falling."""
    right = np.cumsum(hits)
    recall = right / total
    precision = right / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    return float(
        np.where(
            places < len(precision), np.append(precision, 0.0)[np.minimum(places, len(precision))], 0.0
        ).mean()
    )
