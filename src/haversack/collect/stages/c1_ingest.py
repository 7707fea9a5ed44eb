"""C1, ingest: a clip is what its manifest says, and every picture of it can be decoded.

Paper: AoE (arXiv 2602.23893); the stage and its measures are [inferred].

Hashes, tables, timestamps, the video beside its table, the orientation, and every frame decoded
(collect/_findings.py). Measured: length, longest pause, the largest share of frames missing in any second,
whether the rate varies, the mean brightness and its spread over time (a lens that was covered).

A clip with a finding is dropped with the finding's code; `report.json` says all of them. Cost: one decoding
of the clip.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from haversack.collect._findings import check_bundle
from haversack.collect._stages import Clip, Outcome, Stage
from haversack.collect._video import decoded

SYSTEM = 1
REPORT = "report.json"


def run(clip: Clip, out: Path) -> Outcome:
    """Check a clip; writes `report.json`."""
    begun = time.monotonic()
    checked = check_bundle(clip.path, decode=True)
    numbers = dict(checked.numbers)
    if not checked.findings:
        numbers |= brightness(clip.path / "video.mp4")
    seconds = float(numbers.get("seconds", 0.0))
    if seconds > 0:
        numbers["cost_s_per_s"] = round((time.monotonic() - begun) / seconds, 4)
    findings = [{"code": finding.code, "what": finding.what} for finding in checked.findings]
    report = {"clip_uuid": clip.manifest.clip_uuid, "findings": findings, "numbers": numbers}
    (out / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return Outcome(numbers, findings[0]["code"] if findings else None)


def brightness(path: Path) -> dict[str, float]:
    """Mean of the luma plane over a video, and the standard deviation of the frames' means (0 to 255), of
    every fifth frame."""
    means = [
        float(np.asarray(frame.to_ndarray(format="gray"))[::4, ::4].mean())
        for at, frame in enumerate(decoded(path))
        if at % 5 == 0
    ]
    return {"brightness": round(float(np.mean(means)), 2), "brightness_sd": round(float(np.std(means)), 2)}


STAGE = Stage("c1-ingest", "1", run)
