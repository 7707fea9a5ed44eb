"""Pretraining small networks of pictures: the same bits for a seed, and what decays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")

from haversack.models.vision import mobilenetv3
from haversack.models.vision._pretraining_torch import Pretraining, pretrain

RECORD = mobilenetv3.record("mobilenetv3_tiny").with_classes(("a", "b"))


def made(**how: Any) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (32, 32, 32, 3)).astype(np.uint8)
    return pretrain(RECORD, pictures, np.arange(32) % 2, Pretraining(epochs=2, rows=16, threads=1, **how))


def test_kernels_decay_and_scales_do_not() -> None:
    plain, decayed = made(rate=1e-3, decay=0.0), made(rate=1e-3, decay=50.0)
    for name, values in decayed.items():
        if name.endswith("conv.weight"):
            assert np.linalg.norm(values) < 0.95 * np.linalg.norm(plain[name]), name
        elif name.endswith("norm.weight"):
            assert np.abs(values - 1).max() < 0.05, name


def test_a_seed_gives_the_same_bits() -> None:
    one, other = made(), made()
    assert all(np.array_equal(one[name], other[name]) for name in one)
