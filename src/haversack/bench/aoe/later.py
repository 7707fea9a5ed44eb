"""Bars of the specification whose stages are not built yet: rows without a measurement, with the reason."""

from __future__ import annotations

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcomes, Row, Unavailable
from haversack.bench.aoe._bench import bench

WAITING: dict[str, tuple[Row, ...]] = {
    "self-calibration (stage C2)": (
        Row(
            "focal",
            "focal length, |f/f_true - 1|, median of clips",
            "ratio",
            "quality",
            Bar("<=", 0.02),
            "ours",
        ),
        Row(
            "clock-offset", "offset of camera and IMU clocks, error", "ms", "quality", Bar("<=", 4.0), "ours"
        ),
    ),
    "the visual-inertial trajectory (stage C3)": (
        Row("trajectory", "ATE as a share of the path", "ratio", "quality", Bar("<=", 0.03), "ours"),
        Row("rotation", "rotation RMSE", "deg", "quality", Bar("<=", 2.0), "ours"),
        Row(
            "no-gyro",
            "trajectory error without gyro or hand masks over ours",
            "ratio",
            "quality",
            Bar(">=", 1.3),
        ),
    ),
    "hand pose (stage C4)": (
        Row("wrist", "wrist error in the world, median", "mm", "quality", Bar("<=", 25.0), "ours"),
        Row(
            "no-camera-motion",
            "wrist error without camera motion over ours",
            "ratio",
            "quality",
            Bar(">=", 2.0),
        ),
    ),
    "action segmentation (stage C5)": (
        Row("actions", "boundaries, F1 at 0.3 s", "F1", "quality", Bar(">=", 0.75), "ours"),
        Row(
            "uniform-split",
            "boundaries of a uniform split, F1 at 0.3 s",
            "F1",
            "quality",
            Bar("<=", 0.4),
            "ours",
        ),
    ),
    "filtering and deduplication (stages C7, C8)": (
        Row("bad-clips", "planted bad clips that are found", "share", "quality", Bar(">=", 0.9), "ours"),
        Row("false-drops", "good clips that are dropped", "share", "quality", Bar("<=", 0.05), "ours"),
    ),
    "export and the policy trained on it (stages C4 to C9)": (
        Row(
            "curated",
            "policy error, curated over uncurated data of equal size",
            "ratio",
            "quality",
            Bar("<=", 0.8),
        ),
        Row(
            "against-truth",
            "policy error, curated over truth-labelled data",
            "ratio",
            "quality",
            Bar("<=", 1.25),
        ),
        Row(
            "more-data",
            "policy error falls over 1/4, 1/2, 1x of the data",
            "yes",
            "quality",
            Bar("==", 1.0),
            "ours",
        ),
    ),
    "LeRobot v2.1 (stage C9)": (
        Row(
            "round-trip", "v2.1 to v3.0 and back, values changed", "values", "quality", Bar("==", 0.0), "ours"
        ),
    ),
}


def _declare(part: str, rows: tuple[Row, ...]) -> None:
    @bench.measure(*rows, seconds=0.1, quick_seconds=0.1)
    def not_built(run: Run) -> Outcomes:
        raise Unavailable(f"not built yet: {part}")


for _part, _rows in WAITING.items():
    _declare(_part, _rows)
