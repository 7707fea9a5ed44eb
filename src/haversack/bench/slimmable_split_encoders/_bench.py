"""The bench object that the files of this folder add their rows to, the shipped network, and what its modes
are worth on pictures that nothing was trained or chosen on."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from haversack.bench._cache import cached
from haversack.bench._harness import Bench, Run
from haversack.bench._store import content_hash
from haversack.models.vision._average_precision import mean_average_precision
from haversack.models.vision._spots import detections
from haversack.share._split_data import SplitData, made
from haversack.share._split_halves import SlimEncoder, SplitServer
from haversack.share._split_pack import bundled
from haversack.share.slimmable import Mode

NETWORK = ("models/vision/*slim*.py", "models/vision/_s*.py", "reference_models/split-detector/*")
SHIPPED = (
    *NETWORK,
    "models/vision/_average_precision.py",
    "models/vision/_boxes.py",
    "models/vision/_detector_*.py",
    "share/_split_data.py",
    "share/_split_frame.py",
    "share/_split_halves.py",
    "share/_split_pack.py",
    "share/slimmable.py",
    "bench/slimmable_split_encoders/_bench.py",
)
"""What the halves that ship, and their quality, are made of."""
FILES = (
    *SHIPPED,
    "models/vision/faster_rcnn.py",
    "models/vision/efficientdet.py",
    "bench/slimmable_split_encoders/*.py",
    "share/_split_*.py",
)
PACK = "split-detector"
TEST, QUICK = 250, 60
F32 = NDArray[np.float32]

bench = Bench("slimmable-split-encoders", number=13, watches=FILES)


def pack() -> Path:
    """The shipped network."""
    return bundled(PACK)


def pictures(run: Run) -> SplitData:
    """Pictures of the test part; the training's seeds are below 1000."""
    return _pictures(QUICK if run.quick else TEST, 1000 + run.seed % 1_000_000)


@functools.lru_cache(maxsize=2)
def _pictures(count: int, seed: int) -> SplitData:
    return made(count, seed, "test")


def precision(logits: F32, data: SplitData) -> float:
    """mAP@0.5 in points."""
    found = [detections(each, len(data.classes)) for each in logits]
    return 100 * mean_average_precision(found, data.truth, len(data.classes), [0.5])


@functools.lru_cache(maxsize=2)
def _table(count: int, seed: int, modes: tuple[Mode, ...]) -> dict[Mode, float]:
    inputs = {"count": count, "seed": seed, "modes": modes, "program": content_hash(NETWORK)["package"]}
    folder = cached("split-logits", inputs, functools.partial(_answer, count, seed, modes))
    data = _pictures(count, seed)
    with np.load(folder / "logits.npz") as found:
        return {(k, b): precision(found[f"{k}{b}"], data) for k, b in modes}


def _answer(count: int, seed: int, modes: tuple[Mode, ...], goal: Path) -> None:
    encoder, server = SlimEncoder(pack()), SplitServer(pack())
    data, kept = _pictures(count, seed), {}
    for k, b in modes:
        encoder.set_mode(k, b)
        answers = [server.logits(*encoder.cells(picture), k, b) for picture in data.pictures]
        kept[f"{k}{b}"] = np.stack(answers)
    np.savez(goal / "logits.npz", **kept)  # type: ignore[arg-type]


def table(run: Run) -> dict[Mode, float]:
    """mAP@0.5 of every mode in points, by the two halves as they ship; of a quick run four modes."""
    every = tuple(SlimEncoder(pack()).record.table)
    modes = ((1, 1), (1, 4), (4, 1), (4, 4)) if run.quick else every
    return _table(QUICK if run.quick else TEST, 1000 + run.seed % 1_000_000, modes)


def told(values: dict[Mode, float]) -> str:
    """A table in a note."""
    rows: dict[int, list[str]] = {}
    for (k, _), value in sorted(values.items()):
        rows.setdefault(k, []).append(f"{value:.1f}")
    return "; ".join(f"k={k}: {' '.join(row)}" for k, row in rows.items())
