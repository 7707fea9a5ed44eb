"""Bundles for tests: small, real, with pictures that say which frame they are."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from haversack.collect._bundle_writer import ClipInfo, EdgeRows, write_bundle
from haversack.collect._tables import Hand
from haversack.collect._video import write_video
from haversack.collect.bundle import Consent, DeviceRecord, Trigger, sha256_of

WIDTH, HEIGHT, FPS = 96, 64, 15.0
T0 = 5_000_000_000


def pictures(count: int, seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> list[np.ndarray]:
    """A texture that moves two pixels a frame."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    base = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    return [np.ascontiguousarray(np.roll(base, 2 * at, axis=1)) for at in range(count)]


def times(count: int, fps: float = FPS, start: int = T0) -> np.ndarray:
    return start + np.round(np.arange(count) * 1e9 / fps).astype(np.int64)


def info(**changes: Any) -> ClipInfo:
    given: dict[str, Any] = {
        "device": DeviceRecord(id="phone-1", model="Test Phone", os="android-15", lens_id="back"),
        "session": "s1",
        "consent": Consent(contributor_pseudonym="c-anna", policy_version="1.2", retention_days=365),
        "fps_nominal": FPS,
        "t0_wall_ns": time.time_ns(),
        "trigger": Trigger(reason="hands", thresholds={"start": 0.55, "stop": 0.3}),
        "faces_blurred": True,
        "clip_uuid": str(uuid.uuid4()),
    }
    return ClipInfo(**{**given, **changes})


def make(
    root: Path,
    count: int = 30,
    *,
    seed: int = 0,
    t_ns: np.ndarray | None = None,
    crf: int = 23,
    **changes: Any,
) -> Path:
    """A whole bundle of `count` frames under `root`; its folder."""
    when = times(count) if t_ns is None else t_ns
    shots = pictures(count, seed)
    rng = np.random.default_rng(seed)
    imu_t = T0 + np.arange(count * 6, dtype=np.int64) * 11_000_000
    hands = [[Hand(0.2, 0.5, 0.4, 0.8, 0.9, 0.7, 1)] for _ in range(count)]
    ones = np.full(count, 0.7, np.float32)
    return write_bundle(
        root,
        info(**changes),
        lambda path: write_video(path, zip(when.tolist(), shots, strict=True), FPS, crf=crf),
        when,
        rng.normal(0, 1, (len(imu_t), 6)),
        imu_t,
        EdgeRows(when, ones, 100 * ones, ones, hands),
    )


def noisy(root: Path, nbytes: int, seed: int = 0, **changes: Any) -> Path:
    """A whole bundle whose video has at least `nbytes` bytes: noise, nearly lossless."""
    side, count = 256, 10
    rng = np.random.default_rng(seed)
    while True:
        when = times(count)
        shots = [rng.integers(0, 255, (side, side, 3), dtype=np.uint8) for _ in range(count)]
        folder = write_bundle(
            root,
            info(**changes),
            lambda path, when=when, shots=shots: write_video(
                path, zip(when.tolist(), shots, strict=True), FPS, crf=1
            ),
            when,
        )
        size = (folder / "video.mp4").stat().st_size
        if size >= nbytes:
            return folder
        count = int(count * 1.1 * nbytes / size) + 1
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def edit(folder: Path, **changes: Any) -> None:
    """Change fields of the manifest; a value of `...` removes the field."""
    raw = json.loads((folder / "manifest.json").read_text())
    for name, value in changes.items():
        if value is ...:
            raw.pop(name, None)
        else:
            raw[name] = value
    (folder / "manifest.json").write_text(json.dumps(raw))


def reseal(folder: Path, name: str) -> None:
    """Make the manifest say the size and hash that a file has now."""
    raw = json.loads((folder / "manifest.json").read_text())
    for file in raw["files"]:
        if file["name"] == name:
            file["bytes"] = (folder / name).stat().st_size
            file["sha256"] = sha256_of(folder / name)
    (folder / "manifest.json").write_text(json.dumps(raw))
