"""Real weights: the 1x1 convolutions of a speech network that names spelled letters, factored by SVD.

The network is Moonshine's SpellingCNN (ONNX, 51 classes, digits among them). Its 1x1 convolutions at 0.75 of
the limit's rank are put back dense, which computes the same numbers, and both networks hear recorded digits.
They were recorded at 8 kHz and are resampled; the largest of the ten digits' logits is the answer. The front
end is rebuilt from the network's description, so its accuracy is a comparison of the two, not the network's
own.
"""

from __future__ import annotations

import functools
import io
import os
import tarfile
import wave
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.greenformers._bench import bench
from haversack.shrink.structure.low_rank import Shape, factor, relative_error

SHARE = 0.75
MODEL = Path("models") / "moonshine-micro" / "spelling_cnn_mel.onnx"
AUDIO = Path("audio") / "spoken-digits.tar.xz"
RATE, FFT, HOP, BANDS, FRAMES = 16_000, 512, 125, 64, 128
FIRST_DIGIT = 26  # of the 51 classes, after the letters


def data(name: Path) -> Path:
    """A file of the folder that HAVERSACK_DATA names. Raises Unavailable where it is absent."""
    folder = os.environ.get("HAVERSACK_DATA")
    path = Path(folder) / name if folder else None
    if path is None or not path.is_file():
        raise Unavailable(f"{name} is not in the folder that HAVERSACK_DATA names")
    return path


@functools.cache
def mel_bands() -> np.ndarray[Any, Any]:
    """Triangles f64 [64, 257] evenly spaced in mel from 20 Hz to half the rate."""

    def mel(hertz: float) -> float:
        return 2595 * np.log10(1 + hertz / 700)

    edges = 700 * (10 ** (np.linspace(mel(20), mel(RATE / 2), BANDS + 2) / 2595) - 1)
    at = np.linspace(0, RATE / 2, FFT // 2 + 1)
    low, middle, high = (edges[i : BANDS + i, None] for i in range(3))
    return np.maximum(0, np.minimum((at - low) / (middle - low), (high - at) / (high - middle)))


def log_mel(samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """f32 [64, 128] of a second at 16 kHz, its mean 0 and its deviation 1."""
    window = np.hanning(FFT + 1)[:-1]
    padded = np.pad(samples, FFT // 2, mode="reflect")
    frames = np.stack([padded[i * HOP : i * HOP + FFT] * window for i in range(FRAMES)])
    bands = np.log(np.square(np.abs(np.fft.rfft(frames))) @ mel_bands().T + 1e-6)
    return ((bands - bands.mean()) / (bands.std() + 1e-5)).T.astype(np.float32)


def recordings(every: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Log-mel f32 [n, 1, 64, 128] and digits [n] of each `every`-th recording, resampled to 16 kHz."""
    features, digits = [], []
    with tarfile.open(data(AUDIO)) as archive:
        members = sorted((one for one in archive if one.name.endswith(".wav")), key=lambda one: one.name)
        for member in members[::every]:
            file = archive.extractfile(member)
            assert file is not None
            with wave.open(io.BytesIO(file.read())) as sound:
                frames = np.frombuffer(sound.readframes(sound.getnframes()), np.int16) / 32768
            doubled = 2 * np.fft.irfft(np.fft.rfft(frames), 2 * len(frames))[:RATE]
            before = (RATE - len(doubled)) // 2
            features.append(log_mel(np.pad(doubled, (before, RATE - len(doubled) - before))))
            digits.append(int(Path(member.name).name[0]))
    return np.stack(features)[:, None], np.asarray(digits)


@bench.measure(
    Row(
        "spelling-accuracy",
        "SpellingCNN, 1x1 convolutions at 0.75 of the limit by SVD, not trained again: spoken digits named "
        "rightly, beside dense",
        "share",
        "quality",
    ),
    Row("spelling-agreement", "answers that stay the same", "share", "quality", judged="ours"),
    Row(
        "spelling-weights", "weights of those convolutions, beside dense", "weights", "bytes", Bar("<=", 0.76)
    ),
    Row(
        "spelling-error",
        "mean relative error of those convolutions: svd beside semi-NMF",
        "relative",
        "quality",
        Bar("<=", 1.0),
    ),
    seconds=60,
)
def spelling(run: Run) -> Outcomes:
    path = data(MODEL)
    try:
        import onnx
        import onnxruntime
        from onnx import numpy_helper
    except ImportError:
        raise Unavailable(
            "onnx and onnxruntime are not installed; run: pip install 'haversack[onnx]'"
        ) from None
    model = onnx.load(str(path))
    weights = {one.name: one for one in model.graph.initializer}
    before = after = 0
    errors: dict[str, list[float]] = {"svd": [], "snmf": []}
    for node in model.graph.node:
        initial = weights.get(node.input[1]) if node.op_type == "Conv" else None
        if initial is None or list(initial.dims)[2:] != [1, 1]:
            continue
        dense = numpy_helper.to_array(initial)
        matrix = dense[:, :, 0, 0].T
        shape = Shape(*matrix.shape)
        rank = shape.rank(SHARE)
        before += shape.dense
        after += shape.dense if rank is None else shape.factored(rank)
        if rank is None:
            continue
        for solver, taken in errors.items():
            factors = factor(matrix, rank, solver, 10 if solver == "svd" else 30)
            taken.append(relative_error(matrix, *factors))
            if solver == "svd":
                product = np.ascontiguousarray((factors[0] @ factors[1]).T).reshape(dense.shape)
                initial.CopyFrom(numpy_helper.from_array(product, initial.name))
    found: dict[str, Outcome | Unavailable] = {
        "spelling-weights": Outcome.single(after, before, against="dense"),
        "spelling-error": Outcome(
            Side("svd", (float(np.mean(errors["svd"])),)),
            Side("snmf", (float(np.mean(errors["snmf"])),)),
            "by layer: " + ", ".join(f"{one:.2f}" for one in errors["svd"]),
        ),
    }
    try:
        features, digits = recordings(every=5)
    except Unavailable as missing:
        return found | {"spelling-accuracy": missing, "spelling-agreement": missing}
    answers = []
    for content in (path.read_bytes(), model.SerializeToString()):
        session = onnxruntime.InferenceSession(content)
        logits = session.run(None, {"log_mel": features})[0]
        answers.append(logits[:, FIRST_DIGIT : FIRST_DIGIT + 10].argmax(axis=1))
    dense_right, thin_right = (float((answer == digits).mean()) for answer in answers)
    note = f"{len(digits)} recordings of digits, chance 0.1"
    found["spelling-accuracy"] = Outcome.single(thin_right, dense_right, against="dense", note=note)
    found["spelling-agreement"] = Outcome.single(float((answers[0] == answers[1]).mean()), note=note)
    return found
