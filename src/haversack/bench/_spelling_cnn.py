"""Moonshine's SpellingCNN, a real speech network of 1x1 convolutions: where it is, what it hears and says.

It names one of 51 classes in a second of sound, digits among them. Its front end is rebuilt here from its
description, so its accuracy serves to compare networks that hear the same, and is not the network's own.
Recorded digits come from the set of `models/audio/_spoken_digits.py`; the largest of the ten digits' logits
is the answer.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._rows import Unavailable
from haversack.core._datasets import datasets, local_path
from haversack.models.audio._spoken_digits import Recording, read_recordings

FOLDER = Path("models") / "moonshine-micro"
MODEL = FOLDER / "spelling_cnn_mel.onnx"
SHIPPED_INT8 = FOLDER / "spelling_cnn_mel_int8.tflite"
RATE, FFT, HOP, BANDS, FRAMES = 16_000, 512, 125, 64, 128
FIRST_DIGIT = 26  # of the 51 classes, after the letters

Array = np.ndarray[Any, Any]


def data(name: Path) -> Path:
    """A file of the folder that HAVERSACK_DATA names. Raises Unavailable where it is absent."""
    folder = os.environ.get("HAVERSACK_DATA")
    path = Path(folder) / name if folder else None
    if path is None or not path.is_file():
        raise Unavailable(f"{name} is not in the folder that HAVERSACK_DATA names")
    return path


def spoken_digits() -> tuple[Recording, ...]:
    """The recorded digits, read once. Raises Unavailable where there are none on this machine."""
    path = local_path("spoken-digits")
    if path is None:
        raise Unavailable(
            f"{datasets()['spoken-digits'].file} is not in the folder that HAVERSACK_DATA names"
        )
    return _read(path)


@functools.lru_cache(maxsize=1)
def _read(path: Path) -> tuple[Recording, ...]:
    return read_recordings(path)


@functools.cache
def mel_bands() -> Array:
    """Triangles f64 [64, 257] evenly spaced in mel from 20 Hz to half the rate."""

    def mel(hertz: float) -> float:
        return 2595 * np.log10(1 + hertz / 700)

    edges = 700 * (10 ** (np.linspace(mel(20), mel(RATE / 2), BANDS + 2) / 2595) - 1)
    at = np.linspace(0, RATE / 2, FFT // 2 + 1)
    low, middle, high = (edges[i : BANDS + i, None] for i in range(3))
    return np.maximum(0, np.minimum((at - low) / (middle - low), (high - at) / (high - middle)))


def log_mel(samples: Array) -> Array:
    """f32 [64, 128] of a second at 16 kHz, its mean 0 and its deviation 1."""
    window = np.hanning(FFT + 1)[:-1]
    padded = np.pad(samples, FFT // 2, mode="reflect")
    frames = np.stack([padded[i * HOP : i * HOP + FFT] * window for i in range(FRAMES)])
    bands = np.log(np.square(np.abs(np.fft.rfft(frames))) @ mel_bands().T + 1e-6)
    return ((bands - bands.mean()) / (bands.std() + 1e-5)).T.astype(np.float32)


def heard(recordings: Iterable[Recording]) -> tuple[Array, Array]:
    """Log-mel f32 [n, 1, 64, 128] and digits [n] of recordings in the middle of a second each."""
    features, digits = [], []
    for one in recordings:
        samples = one.samples[:RATE]
        before = (RATE - len(samples)) // 2
        features.append(log_mel(np.pad(samples, (before, RATE - len(samples) - before))))
        digits.append(one.digit)
    return np.stack(features)[:, None], np.asarray(digits)


def pointwise(model: Any) -> Iterator[tuple[Any, Any]]:
    """The 1x1 convolutions of an ONNX model in order of use: each node, and the initializer of its matrix."""
    weights = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        initial = weights.get(node.input[1]) if node.op_type == "Conv" else None
        if initial is not None and list(initial.dims)[2:] == [1, 1]:
            yield node, initial


def onnx_libraries() -> tuple[Any, Any]:
    """The modules onnx and onnxruntime. Raises Unavailable where one is not installed."""
    try:
        import onnx
        import onnx.numpy_helper
        import onnxruntime
    except ImportError:
        raise Unavailable(
            "onnx and onnxruntime are not installed; run: pip install 'haversack[onnx]'"
        ) from None
    return onnx, onnxruntime


def answers(content: bytes, features: Array) -> Array:
    """Logits f32 [n, 51] of a serialized ONNX model for log-mel features [n, 1, 64, 128]."""
    _, onnxruntime = onnx_libraries()
    session = onnxruntime.InferenceSession(content)
    logits: Array = session.run(None, {"log_mel": features})[0]
    return logits


def named_digits(logits: Array) -> Array:
    """The digit [n] with the largest logit among the ten."""
    return logits[:, FIRST_DIGIT : FIRST_DIGIT + 10].argmax(axis=1)
