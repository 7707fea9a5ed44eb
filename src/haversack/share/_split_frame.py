"""What travels between the halves: one frame up, one answer down.

A frame is a head of 60 bytes, then the payload: b bits a number, packed. The head says which model it is of
(the first 16 bytes of its hash), the mode, where the cells lie, and how the device fares: its deadline, the
last frame's time, frames sent and frames in time, so that a server can show them. An answer is JSON.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.models.vision.slimmable import check_mode, unpack_bits

VERSION = 1
_HEAD = struct.Struct("<4sBBBxI16sffffII4xI")
MAGIC = b"HVSP"
HEAD_BYTES = _HEAD.size
U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Fares:
    """How a device fares: its deadline and its last frame's time in ms, frames sent, frames in time."""

    deadline_ms: float = 0.0
    last_ms: float = 0.0
    frames: int = 0
    hits: int = 0


@dataclass(frozen=True)
class Frame:
    """One frame: sequence number, mode, first cell's begin, a cell's width, packed cells."""

    seq: int
    k: int
    b: int
    low: float
    step: float
    payload: bytes
    fares: Fares = field(default_factory=Fares)


def encode_frame(frame: Frame, model: bytes) -> bytes:
    """The bytes of a frame of the model whose hash begins with `model` (16 bytes)."""
    fares = frame.fares
    head = _HEAD.pack(
        *(MAGIC, VERSION, frame.k, frame.b, frame.seq & 0xFFFFFFFF, model, frame.low, frame.step),
        *(fares.deadline_ms, fares.last_ms, fares.frames, fares.hits, len(frame.payload)),
    )
    return head + frame.payload


def decode_frame(data: bytes, model: bytes, shape: tuple[int, int, int], members: int) -> tuple[Frame, U8]:
    """A frame and its cells u8 of `shape`. Raises UserError for what is no frame, one of another version or
    model, a mode that there is not, numbers that are none, a payload of another length."""
    if len(data) < HEAD_BYTES or data[:4] != MAGIC:
        raise UserError("these bytes are no frame of a split model.", field="frame", given=len(data))
    if data[4] != VERSION:
        raise UserError(
            f"the frame is of version {data[4]} and this server reads version {VERSION}; use the same "
            "haversack on both sides.",
            field="version",
            given=data[4],
            nearest=VERSION,
        )
    parts: tuple[Any, ...] = _HEAD.unpack_from(data)
    _, _, k, b, seq, said, low, step, deadline, last, frames, hits, length = parts
    if said != model:
        raise UserError(
            f"the frame is of model {said.hex()[:16]} and this server has {model.hex()[:16]}; give both "
            "sides halves of the same pack.",
            field="model",
            given=said.hex()[:16],
            nearest=model.hex()[:16],
        )
    check_mode(k, b, members)
    for name, value in (("low", low), ("step", step)):
        if not math.isfinite(value) or abs(value) > 1e6 or (name == "step" and value <= 0):
            raise UserError(f"{name}={value} is not possible for cells.", field=name, given=str(value))
    payload = data[HEAD_BYTES:]
    if len(payload) != length:
        raise UserError(
            f"the frame says it carries {length} bytes and carries {len(payload)}.",
            field="payload",
            given=len(payload),
            nearest=length,
        )
    cells = unpack_bits(payload, b, math.prod(shape)).reshape(shape)
    fares = Fares(_number(deadline), _number(last), frames, hits)
    return Frame(seq, k, b, low, step, payload, fares), cells


def _number(value: float) -> float:
    return value if math.isfinite(value) and value >= 0 else 0.0
