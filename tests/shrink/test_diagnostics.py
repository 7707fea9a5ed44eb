"""Diagnostics on arrays whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from haversack.shrink._diagnostics import channel_maxima, cosine, kurtosis, signal_to_noise_db


def test_a_tenth_of_noise_is_twenty_decibels() -> None:
    signal = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    assert signal_to_noise_db(signal, 1.1 * signal) == pytest.approx(20.0, abs=1e-4)
    assert signal_to_noise_db(signal, signal) == math.inf
    assert signal_to_noise_db(np.zeros_like(signal), signal) == -math.inf


def test_cosine_knows_direction_and_not_size() -> None:
    one, other = np.float32([[1, 0], [0, 2]]), np.float32([[0, 3], [4, 0]])
    assert cosine(one, 3 * one) == pytest.approx(1.0)
    assert cosine(one, other) == 0.0
    assert cosine(one, -one) == pytest.approx(-1.0)
    assert cosine(0 * one, 0 * one) == 1.0 and cosine(one, 0 * one) == 0.0


def test_channels_that_stand_out_are_seen() -> None:
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((20_000, 3)).astype(np.float32)
    inputs[:, 1] = 2.5
    inputs[::1000, 2] *= 30
    assert channel_maxima(inputs)[1] == 2.5
    found = kurtosis(inputs)
    assert found[0] == pytest.approx(3.0, abs=0.15)
    assert found[1] == 0.0
    assert found[2] > 50
