"""A pipeline's model on the device: numpy arrays and the steps of a window, one call a step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.models.streams import fusion
from haversack.models.streams._folder import bundled, read_folder
from haversack.models.streams._record import AUDIO_MODELS, VIDEO_MODELS, Shape
from haversack.models.streams.temporal_aggregation import aggregate_audio, aggregate_video
from haversack.models.streams.unit_encoders import encode_chunks, encode_frames

F32 = NDArray[np.float32]
SLOW, FAST = 0, 1


class StreamsModel:
    """Encoders, aggregation, fusion, predictor and gate of one task.

    A sense is SLOW (frames) or FAST (samples); sizes are names of the record's. Features are f32 [width].
    """

    def __init__(self, shape: Shape, table: F32, tensors: Mapping[str, F32]) -> None:
        self.shape, self.table, self.tensors = shape, table, tensors
        self._strides = {
            (SLOW, size): [stride for _, stride in VIDEO_MODELS[size]] for size in shape.sizes
        } | {(FAST, size): [stride for *_, stride in AUDIO_MODELS[size]] for size in shape.sizes}

    @classmethod
    def open(cls, name: str | Path = "events") -> StreamsModel:
        """A model that ships, by its name, or a folder. Raises UserError or DamagedFileError."""
        return cls(*read_folder(bundled(name)))

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(array.nbytes for array in self.tensors.values())

    def encode(self, sense: int, size: str, units: NDArray[Any]) -> F32:
        """Features [n, width] of units: frames u8 [n, side, side], or chunks [n, samples]."""
        strides = self._strides[sense, size]
        if sense == SLOW:
            return encode_frames(units, self.tensors, f"video.{size}", strides)
        return encode_chunks(units, self.tensors, f"audio.{size}", strides)

    def aggregate(self, sense: int, size: str, features: F32, shifted: F32 | None = None) -> F32:
        """The window's feature [width] of features [steps, width]."""
        if sense == SLOW:
            return aggregate_video(features, self.tensors, f"video.{size}.time", shifted=shifted)
        return aggregate_audio(features, self.tensors, f"audio.{size}.time", shifted=shifted)

    def fuse(self, sizes: tuple[str, str], slow: F32, fast: F32) -> F32:
        """Probabilities [classes]; `sizes` are the slow sense's encoder and the fast one's."""
        logits = fusion.fuse(np.stack([slow, fast]), self.tensors, f"fusion.{sizes[0]}.{sizes[1]}")
        return fusion.softmax(logits)

    def evidence(self, slow: F32, fast: F32) -> float:
        """s of the first units' features through the smallest encoders."""
        return fusion.similarity(slow, fast)

    def accuracies(self, s: float, choices: NDArray[np.int64]) -> F32:
        """The accuracy expected of configurations [n, 4] at evidence s.

        Ours: the predictor says by how much it differs from that at the usual evidence, where the table's
        measured mean stands. The published one answers by itself; a small network that interpolates 81
        configurations is off by a point or two at each, which is more than the evidence ever tells.
        """
        expected = self._predicted(s, choices)
        usual = self.shape.usual_evidence
        if usual is None:
            return expected
        measured = self.table.mean(-1)[tuple(choices.T)]
        return np.asarray(measured + expected - self._predicted(usual, choices), np.float32)

    def _predicted(self, s: float, choices: NDArray[np.int64]) -> F32:
        most = np.array(self.table.shape[:4]) - 1
        return fusion.predict_accuracy(fusion.predictor_input(s, choices, most), self.tensors)

    def stop(self, sizes: tuple[str, str], fast: F32, slow: F32) -> float:
        """How sure it is that the rest of the slow sense may be skipped, 0 to 1."""
        confidence = float(self.fuse(sizes, slow, fast).max())
        return fusion.stop_probability(fast, slow, confidence, self.tensors)
