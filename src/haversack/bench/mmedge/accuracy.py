"""What aggregation is worth over pooling, with the same encoders and fusion, trained as long; easy and hard
recordings apart."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from haversack.bench._cache import cached
from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench._store import content_hash
from haversack.bench.mmedge._bench import (
    LARGEST,
    NETWORK,
    TRAINED,
    bench,
    model,
    photos,
    points,
    recordings,
    test_answers,
)
from haversack.models.streams._events import HARD_DB, Recordings, make
from haversack.models.streams._model import FAST, SLOW

if TYPE_CHECKING:
    from haversack.models.streams import _training_torch as training

WATCHED = (*NETWORK, "bench/mmedge/_bench.py", "bench/mmedge/accuracy.py")
SIZE, LEARNED, JUDGED = "medium", 3000, 2400
KINDS = ("temporal", "plain", "mean")


def _units(data: Recordings) -> training.Units:
    """Features of the units of the medium encoders."""
    import torch

    video = np.stack([model().encode(SLOW, SIZE, frames) for frames in data.frames])
    audio = {}
    for chunk in model().shape.fast.units:
        count = -(-data.sound.shape[1] // chunk)
        padded = np.pad(data.sound, ((0, 0), (0, count * chunk - data.sound.shape[1]))).reshape(-1, chunk)
        each = [model().encode(FAST, SIZE, padded[at : at + 100]) for at in range(0, len(padded), 100)]
        audio[chunk] = torch.from_numpy(np.concatenate(each).reshape(len(data), count, -1))
    return {("video", SIZE): {0: torch.from_numpy(video)}, ("audio", SIZE): audio}


def _learn(goal: Path, seed: int) -> None:
    """Accuracy of each kind of aggregation, whole windows at all rates and chunk sizes."""
    import torch

    from haversack.models.streams import _training_torch as training

    how = training.How(seed=seed % 1000)
    training.prepare(how)
    learned, judged = make(LEARNED, 500, photos()[:TRAINED]), recordings(JUDGED, seed)
    parts = [_units(data) for data in (learned, judged)]
    labels = [torch.from_numpy(data.labels) for data in (learned, judged)]
    found = {}
    for kind in KINDS:
        modules = {
            place: training.train_aggregator(place[0], kind, units, labels[0], how, lambda text: None)
            for place, units in parts[0].items()
        }
        windows = [
            training.features(part, modules, label, (SIZE,))
            for part, label in zip(parts, labels, strict=True)
        ]
        fusion = training.train_fusion((SIZE, SIZE), windows[0], how, lambda text: None)
        right = []
        with torch.no_grad():
            for rate in training.RATES:
                for chunk in training.CHUNKS:
                    x = torch.stack([windows[1].video[SIZE, rate, 1.0], windows[1].audio[SIZE, chunk]], 1)
                    right.append(float((fusion(x).argmax(1) == labels[1]).float().mean()))
        found[kind] = float(np.mean(right))
    np.savez(goal / "accuracy.npz", **{kind: np.array(share) for kind, share in found.items()})  # type: ignore[arg-type]


@bench.measure(
    Row(
        "aggregation-mean",
        "accuracy with temporal aggregation less that with the mean over time, medium encoders",
        "percentage points",
        "quality",
        Bar(">=", 3.0),
        judged="ours",
    ),
    Row(
        "aggregation-plain",
        "the same, less that of the paper's own baseline (one separable convolution and the mean)",
        "percentage points",
        "quality",
        judged="ours",
    ),
    seconds=300,
    watches=WATCHED,
)
def aggregation(run: Run) -> Outcomes:
    seed = run.seed % 1_000_000
    key = {"seed": seed, "program": content_hash(WATCHED)["package"]}
    folder = cached("mmedge-aggregation", key, functools.partial(_learn, seed=seed))
    with np.load(folder / "accuracy.npz") as found:
        shares = {kind: float(found[kind]) for kind in KINDS}
    note = ", ".join(f"{kind} {share:.4f}" for kind, share in shares.items())
    note += f"; {LEARNED} recordings learned from, {JUDGED} judged, mean of nine rates and chunk sizes"
    return {
        f"aggregation-{kind}": Outcome.single(points(shares["temporal"] - shares[kind]), note=note)
        for kind in KINDS[1:]
    }


@bench.measure(
    Row(
        "accuracy-hard",
        "hard to hear (below 5 dB) over easy, largest networks",
        "accuracy",
        "quality",
        quick=True,
    ),
    Row("accuracy-dim", "hard to see (the worse half) over easy", "accuracy", "quality", quick=True),
    seconds=60,
    quick_seconds=20,
    watches=WATCHED,
)
def split(run: Run) -> Outcomes:
    found = test_answers(run)
    right, hard, dim = found.right(LARGEST), found.data.noise_db < HARD_DB, found.data.sight < 0.5
    return {
        "accuracy-hard": Outcome.single(right[hard].mean(), right[~hard].mean(), name="hard", against="easy"),
        "accuracy-dim": Outcome.single(right[dim].mean(), right[~dim].mean(), name="dim", against="clear"),
    }
