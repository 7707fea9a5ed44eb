"""Networks of this bench: the MLPerf Tiny ones with inputs that resemble theirs, and compiled C in this
process."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._rows import Unavailable

Array = np.ndarray[Any, Any]

TINY = {
    "resnet8": ("pretrainedResnet_quant.tflite", "pretrainedResnet.tflite"),
    "ds-cnn": ("kws_ref_model.tflite", "kws_ref_model_float32.tflite"),
    "vww": ("vww_96_int8.tflite", "vww_96_float.tflite"),
    "autoencoder": ("ad01_int8.tflite", "ad01_fp32.tflite"),
}
"""Network -> its file in codes, its file in floats."""
MFCC, FRAMES, BANDS = (49, 10), 5, 128


def shared(*parts: str) -> Path:
    """A file of the folder that HAVERSACK_DATA names. Raises Unavailable where it is absent."""
    folder = os.environ.get("HAVERSACK_DATA")
    path = Path(folder).joinpath(*parts) if folder else None
    if path is None or not path.is_file():
        raise Unavailable(f"{'/'.join(parts)} is not in the folder that HAVERSACK_DATA names")
    return path


def tiny(name: str, *, floats: bool = False) -> Path:
    """The file of an MLPerf Tiny network."""
    return shared("models", "mlperf-tiny", TINY[name][floats])


def real_rows(name: str, count: int) -> Array:
    """[count, ...] in real numbers: photographs, or features of spoken digits computed as the benchmark
    computes those of its own sounds. Raises Unavailable without the data."""
    if name in ("resnet8", "vww"):
        size = 32 if name == "resnet8" else 96
        return _pictures(size, count) / (1.0 if name == "resnet8" else 255.0)
    spectra = _log_mel(40 if name == "ds-cnn" else BANDS, count)
    if name == "ds-cnn":
        places = np.arange(40) + 0.5
        turn = np.cos(np.pi * np.outer(np.arange(MFCC[1]), places) / 40) * math.sqrt(2 / 40)
        turn[0] /= math.sqrt(2)
        found: Array = np.stack([each[: MFCC[0]] @ turn.T for each in spectra])
        return found[..., None]
    return np.stack([each[:FRAMES].reshape(-1) * (10 / math.log(10)) for each in spectra])


@functools.cache
def _pictures(size: int, count: int) -> Array:
    from haversack.core._datasets import local_path
    from haversack.formats.pictures import read_folder, read_picture

    place = local_path("cifar-10")
    if place is None:
        raise Unavailable("cifar-10 is not in the folder that HAVERSACK_DATA names")
    files = read_folder(place).files
    some = files[:: max(1, len(files) // count)][:count]
    return np.stack([read_picture(each, size, size) for each in some]).astype(np.float64)


def _log_mel(bands: int, count: int) -> list[Array]:
    """Natural logarithms of powers in mel bands [frames, bands], windows of 30 ms each 20 ms."""
    from haversack.bench._spelling_cnn import spoken_digits
    from haversack.models.audio._spoken_digits import RATE

    span, hop, bins = int(0.03 * RATE), int(0.02 * RATE), 512
    edges = 700 * (10 ** (np.linspace(0, 2595 * math.log10(1 + RATE / 1400), bands + 2) / 2595) - 1)
    at = np.linspace(0, RATE / 2, bins // 2 + 1)
    low, middle, high = (edges[i : bands + i, None] for i in range(3))
    filters = np.maximum(0, np.minimum((at - low) / (middle - low), (high - at) / (high - middle)))
    found = []
    for sound in spoken_digits()[:count]:
        samples = np.zeros(RATE + span)
        kept = sound.samples[:RATE]
        samples[: len(kept)] = kept
        frames = np.stack([samples[i : i + span] for i in range(0, RATE, hop)]) * np.hanning(span)
        power = np.abs(np.fft.rfft(frames, bins)) ** 2
        found.append(np.log(power @ filters.T + 1e-6))
    return found


def rows_of(graph: Any, name: str, real: int, random: int, seed: int) -> Array:
    """Inputs of a graph: `real` ones, then `random` ones over the whole range, in its own type."""
    tensor = graph.tensors[graph.inputs[0]]
    codes = tensor.quantization
    given = real_rows(name, real).reshape(real, *tensor.shape)
    rng = np.random.default_rng(seed)
    if codes is None:
        drawn = rng.uniform(given.min(), given.max(), (random, *tensor.shape))
        return np.concatenate([given, drawn]).astype(np.float32)
    whole = np.clip(np.rint(given / codes.scale) + codes.zero, -128, 127)
    codes_drawn = rng.integers(-128, 128, (random, *tensor.shape))
    return np.concatenate([whole, codes_drawn]).astype(np.int8)


class Compiled:
    """Emitted C as a library of this process."""

    def __init__(
        self, folder: Path, graph: Any, *flags: str, sources: Sequence[str] = ("network.c",)
    ) -> None:
        from haversack.embed._host import run

        self.goal = graph.tensors[graph.outputs[0]]
        self.object = folder / f"network-{abs(hash((flags, sources))):x}.so"
        base = ["gcc", "-std=c99", "-O2", "-ffp-contract=off", "-shared", "-fPIC", *flags]
        run([*base, *(folder / each for each in sources), "-o", self.object, "-lm"])
        self.c = ctypes.CDLL(str(self.object))

    def outputs(self, rows: Array) -> Array:
        """[n, outputs] of rows [n, ...], one pass each."""
        found = np.empty((len(rows), self.goal.size), np.int8 if self.goal.dtype == "int8" else np.float32)
        for row, out in zip(np.ascontiguousarray(rows), found, strict=True):
            self.c.nn_forward(row.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p))
        return found

    def seconds(self, row: Array, passes: int) -> float:
        """Mean of `passes` passes over one row."""
        given = np.ascontiguousarray(row)
        out = np.empty(self.goal.size, np.int8 if self.goal.dtype == "int8" else np.float32)
        x, y = given.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p)
        self.c.nn_forward(x, y)
        start = time.perf_counter()
        for _ in range(passes):
            self.c.nn_forward(x, y)
        return (time.perf_counter() - start) / passes
