"""The landmark network that ships: numpy runs the network that was trained, and it finds unseen hands."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "reference"))

from haversack.bench.aoe._scene import textures  # noqa: E402
from haversack.collect import _landmarks  # noqa: E402
from train_hand_landmarks import SIDE, Landmarks, crop, moved  # noqa: E402


def test_numpy_runs_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of random weights and statistics: normalisations folded, channels last."""
    torch.manual_seed(3)
    model = Landmarks()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
    model.eval()
    stored = {name: value.astype(np.float32) for name, value in model.arrays().items()}
    monkeypatch.setattr(_landmarks, "weights", lambda: stored)
    crops = np.random.default_rng(0).integers(0, 255, (3, SIDE, SIDE, 3), dtype=np.uint8)
    with torch.no_grad():
        wanted = model(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1).numpy()
    found = _landmarks.network(crops)
    assert np.abs(found[..., :2].reshape(3, 42) - wanted[:, :42]).max() < 0.02
    assert np.abs(found[..., 2] - wanted[:, 42:]).max() < 0.02 * np.abs(wanted[:, 42:]).max()


def test_a_crop_and_its_targets_move_together() -> None:
    """A bright spot is where its target says, however the crop is turned, scaled and shifted."""
    torch.manual_seed(0)
    x, y = -torch.ones(24, 3, SIDE, SIDE), torch.zeros(24, 63)
    x[:, :, 40:43, 20:23] = 1
    y[:, :2] = torch.tensor([(21.5 / SIDE) * 2 - 1, (41.5 / SIDE) * 2 - 1])
    seen, wanted = moved(x, y)
    bright = seen.mean(1).flatten(1).argmax(1)
    at = torch.stack([bright % SIDE, bright // SIDE], 1).float() + 0.5
    inside = (wanted[:, :2].abs() < 0.9).all(1)
    assert inside.sum() > 12
    assert (at - (wanted[:, :2] + 1) * SIDE / 2)[inside].norm(dim=1).max() < 3


def test_hands_that_it_never_saw() -> None:
    rng = np.random.default_rng(81_000)
    walls = [part for seed in range(81_000, 81_002) for part in textures(seed)]
    made = [crop(rng, walls) for _ in range(120)]
    found = _landmarks.network(np.stack([picture for picture, _ in made]))
    truth = np.stack([target for _, target in made])
    off = np.linalg.norm(found[..., :2] - truth[:, :42].reshape(-1, 21, 2), axis=2) * SIDE / 2
    assert np.median(off) < 2.0 and np.abs(found[..., 2] - truth[:, 42:]).mean() * 95 < 16
