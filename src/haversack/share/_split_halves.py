"""The two halves at work, without PyTorch: `SlimEncoder` on the device, `SplitServer` on the server.

Both run ONNX graphs on ONNX Runtime; the encoder also runs on numpy alone (`backend="numpy"`), with the same
cells but for values at a cell's edge.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, MissingExtraError, UserError, not_allowed
from haversack.core.pack import Pack
from haversack.formats.coco import Detections
from haversack.models.vision._slim_record import BITS, SplitNet
from haversack.models.vision._spots import detections
from haversack.models.vision.slimmable import (
    Ensemble,
    check_mode,
    learned_range,
    levels_of,
    normed,
    pack_bits,
    quantize,
)
from haversack.share._split_frame import Fares, Frame, decode_frame, encode_frame
from haversack.share._split_pack import LOOK, SERVER, SplitRecord, member_name, open_split, read_tensors

U8 = NDArray[np.uint8]
BACKENDS = ("onnxruntime", "numpy")


class Graphs:
    """The members of a pack on ONNX Runtime, one graph each; called like `slimmable.Ensemble`."""

    def __init__(self, pack: Pack, record: SplitRecord, threads: int) -> None:
        self.gain = record.gains
        names = [member_name(at) for at in range(record.members)]
        self._sessions = [session(pack.read_file(name), threads, str(pack.path / name)) for name in names]

    def __call__(self, x: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        """y [6, h/4, w/4] of normed pixels [3, h, w] from the first `k` members."""
        fed = {"x": x[None]}
        total: NDArray[np.float32] = self._sessions[0].run(None, fed)[0][0]
        for at in range(1, k):
            total += np.float32(self.gain[at]) * self._sessions[at].run(None, fed)[0][0]
        return total


class SlimEncoder:
    """The device half of a split pack (whole or device).

    `set_mode` is two integers and loads nothing; `encode` gives a frame's bytes.

        encoder = SlimEncoder("detector.pack")
        encoder.set_mode(2, 3)
        data = encoder.encode(picture)          # u8 [side, side, 3]

    Raises UserError for a pack that is none, a mode that there is not, a picture of another size.
    """

    def __init__(self, pack: str | os.PathLike[str], backend: str = "onnxruntime", threads: int = 1) -> None:
        if backend not in BACKENDS:
            raise not_allowed("backend", backend, BACKENDS)
        opened, self.record = open_split(pack)
        self.side = self.record.side
        self.mode = (1, 1)
        self.seq = 0
        self.backend = backend
        tensors = read_tensors(opened)
        self._clips = levels_of(tensors)
        self._ensemble: Callable[[NDArray[np.float32], int], NDArray[np.float32]]
        if backend == "numpy":
            self._ensemble = Ensemble(tensors, self.record.members, self.record.gains)
        else:
            self._ensemble = Graphs(opened, self.record, threads)

    def set_mode(self, k: int, b: int) -> None:
        """k members, b bits from the next picture on."""
        check_mode(k, b, self.record.members)
        self.mode = (k, b)

    def cells(self, picture: U8) -> tuple[U8, float, float]:
        """(cells u8 [6, side / 4, side / 4], where the first begins, how wide one is)."""
        wanted = (self.side, self.side, 3)
        if picture.shape != wanted or picture.dtype != np.uint8:
            raise UserError(
                f"a picture is {picture.dtype} {list(picture.shape)}; the model takes uint8 {list(wanted)}.",
                field="picture",
                given=list(picture.shape),
                nearest=list(wanted),
            )
        k, b = self.mode
        y = self._ensemble(normed(picture), k)
        low, step = learned_range(y, b, self._clips[b - 1])
        return quantize(y, b, low, step), low, step

    def encode(self, picture: U8, fares: Fares | None = None) -> bytes:
        """A frame of the mode that is set."""
        cells, low, step = self.cells(picture)
        k, b = self.mode
        self.seq += 1
        frame = Frame(self.seq, k, b, low, step, pack_bits(cells, b), fares or Fares())
        return encode_frame(frame, self.record.key)


class ServerHalf:
    """Decoder and frozen rest of a network at work: its graphs on ONNX Runtime. `graph`: the server's, or
    the whole teacher's; `look`: the regions', of a detector that has one."""

    def __init__(self, net: SplitNet, graph: bytes, look: bytes | None, threads: int, place: str) -> None:
        self.net = net
        self._session = session(graph, threads, place)
        self._names = [each.name for each in self._session.get_outputs()]
        self._look = None if look is None else session(look, threads, place)

    def run(self, fed: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
        """The graph's outputs by name."""
        return dict(zip(self._names, self._session.run(None, dict(fed)), strict=True))

    def found(self, said: Mapping[str, NDArray[np.float32]], least: float | None = None) -> Detections:
        """The detections in a detector's outputs; `least` score (None: as few as mAP is counted from)."""
        detector, own = self.net.detector, {} if least is None else {"least": least}
        if detector is None:
            return detections(said["logits"], len(self.net.classes), **own)
        made: Detections = detector.module.found(said, detector.columns, self.net.side, self._looked, **own)
        return made

    def _looked(self, fed: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
        assert self._look is not None
        names = [each.name for each in self._look.get_outputs()]
        return dict(zip(names, self._look.run(None, dict(fed)), strict=True))


def fed_with(cells: U8, low: float, step: float, k: int, b: int) -> dict[str, Any]:
    """What the server's graph takes."""
    return {
        "cells": cells,
        "low": np.array(low, np.float32),
        "step": np.array(step, np.float32),
        "mode": np.array((k - 1) * BITS + b - 1, np.int64),
    }


class SplitServer:
    """The server half of a whole split pack. Raises UserError for a device's half."""

    def __init__(self, pack: str | os.PathLike[str], threads: int = 1, least: float = 0.3) -> None:
        opened, self.record = open_split(pack)
        if self.record.half != "whole":
            raise UserError(
                f"{pack} is a device's half; give the server the whole pack it was made of.",
                field="pack",
                given=str(pack),
            )
        self.least = least
        look = opened.read_file(LOOK) if LOOK in opened.record.files else None
        place = str(opened.path / SERVER)
        self.half = ServerHalf(self.record.net, opened.read_file(SERVER), look, threads, place)

    def logits(self, cells: U8, low: float, step: float, k: int, b: int) -> NDArray[np.float32]:
        """What the network says of cells, where the teacher is our own."""
        return self.half.run(fed_with(cells, low, step, k, b))["logits"]

    def found(
        self, cells: U8, low: float, step: float, k: int, b: int, least: float | None = None
    ) -> Detections:
        """What a detector finds in cells."""
        return self.half.found(self.half.run(fed_with(cells, low, step, k, b)), least)

    def decode(self, data: bytes) -> tuple[Frame, dict[str, Any]]:
        """A frame's answer: {seq, decoder_time_ms, detections} or {.., label, score}. Raises UserError for
        bytes that are no frame of this model."""
        began = time.perf_counter()
        frame, cells = decode_frame(data, self.record.key, self.record.net.shape, self.record.members)
        sent = (cells, frame.low, frame.step, frame.k, frame.b)
        answer: dict[str, Any] = {"seq": frame.seq}
        if self.record.task == "classify":
            logits = self.logits(*sent)
            shares = np.exp(logits - logits.max())
            at = int(logits.argmax())
            answer |= {"label": self.record.classes[at], "score": round(float(shares[at] / shares.sum()), 4)}
        else:
            answer["detections"] = told(self.found(*sent, self.least), self.record.classes)
        return frame, answer | {"decoder_time_ms": round(1000 * (time.perf_counter() - began), 3)}


def told(found: Detections, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Detections as an answer has them."""
    return [
        {
            "label": classes[int(label)],
            "score": round(float(score), 4),
            "box": [round(float(x), 1) for x in box],
        }
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
    ]


def session(model: bytes, threads: int, place: str) -> Any:
    """A session of ONNX Runtime. Raises MissingExtraError without it, DamagedFileError for bytes that are no
    model."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("running a split network", "onnxruntime", "onnx") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own kinds
        raise DamagedFileError(place, f"it is no network that runs ({str(error)[:100]})") from error
