"""What the modes are worth: rising with members and bits, beside the teacher, beside JPEG at equal mAP."""

from __future__ import annotations

import functools
import io

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.slimmable_split_encoders._bench import (
    SHIPPED,
    bench,
    pack,
    pictures,
    precision,
    table,
    told,
)
from haversack.models.vision._slim_onnx import teacher_onnx
from haversack.models.vision.slimmable import payload_bytes
from haversack.share._split_data import SplitData
from haversack.share._split_halves import SlimEncoder, session
from haversack.share._split_pack import open_split, read_tensors

TOLERANCE = 0.3
WATCHED = (*SHIPPED, "bench/slimmable_split_encoders/quality.py")


@bench.measure(
    Row(
        "falls-with-members",
        "greatest fall of mAP@0.5 from k to k + 1 members, over all bits",
        "points",
        "quality",
        Bar("<=", TOLERANCE),
        judged="ours",
        published="16.5 to 16.4 and 14.5 to 36.8 mAP over the modes (COCO)",
    ),
    Row(
        "falls-with-bits",
        "greatest fall of mAP@0.5 from b to b + 1 bits, over all members",
        "points",
        "quality",
        Bar("<=", TOLERANCE),
        judged="ours",
    ),
    Row(
        "largest-over-teacher",
        "mAP@0.5 of (4, 4) over the teacher's",
        "points",
        "quality",
        Bar(">=", 0.95),
        quick=True,
        published="36.8 mAP",
    ),
    seconds=150,
    quick_seconds=15,
    watches=WATCHED,
)
def modes(run: Run) -> Outcomes:
    found = table(run)
    data = pictures(run)
    whole = teacher_precision(data.pictures, data)
    falls = {axis: 0.0 for axis in (0, 1)}
    for (k, b), value in found.items():
        for axis, other in ((0, (k + 1, b)), (1, (k, b + 1))):
            if other in found:
                falls[axis] = max(falls[axis], value - found[other])
    note = f"{told(found)}; {len(data)} pictures"
    return {
        "falls-with-members": Outcome.single(falls[0], note=note),
        "falls-with-bits": Outcome.single(falls[1], note=note),
        "largest-over-teacher": Outcome.single(found[4, 4], whole, against="the whole teacher"),
    }


@bench.measure(
    Row(
        "payload",
        "bytes of a picture of 384 x 384 at 1, 2, 3 and 4 bits that differ from 6,912 b",
        "B",
        "bytes",
        Bar("==", 0.0),
        judged="ours",
        published="6.9k / 13.8k / 20.7k / 27.6k",
        quick=True,
    ),
    seconds=1,
    quick_seconds=1,
    watches=WATCHED,
)
def payload(run: Run) -> Outcomes:
    encoder = SlimEncoder(pack())
    picture = np.zeros((encoder.side, encoder.side, 3), np.uint8)
    off = sum(abs(payload_bytes(bits) - 6912 * bits) for bits in range(1, 5))
    sizes = []
    for bits in range(1, 5):
        encoder.set_mode(1, bits)
        sizes.append(len(encoder.encode(picture)))
    told_ = ", ".join(map(str, sizes))
    return {"payload": Outcome.single(off, note=f"frames of 96 x 96 with their head of 60 bytes: {told_} B")}


@bench.measure(
    Row(
        "bytes-over-jpeg",
        "payload of (4, 4) over JPEG's bytes at the lowest quality whose mAP@0.5, by the teacher, is as high",
        "B",
        "bytes",
        Bar("<=", 0.25),
    ),
    seconds=120,
    watches=WATCHED,
)
def jpeg(run: Run) -> Outcomes:
    wanted, data = table(run)[4, 4], pictures(run)
    seen: dict[int, tuple[float, float]] = {}

    def worth(quality: int) -> float:
        if quality not in seen:
            sent = [_jpeg(picture, quality) for picture in data.pictures]
            shown = np.stack([each for _, each in sent])
            seen[quality] = (teacher_precision(shown, data), float(np.mean([size for size, _ in sent])))
        return seen[quality][0]

    low, high = 1, 95
    while low < high:
        middle = (low + high) // 2
        if worth(middle) >= wanted:
            high = middle
        else:
            low = middle + 1
    worth(low)
    reached, nbytes = seen[low]
    ours = float(payload_bytes(4, 96))
    note = f"JPEG (Pillow, optimized, 4:2:0, whole files) reaches {reached:.1f}; ours {wanted:.1f}"
    return {"bytes-over-jpeg": Outcome.single(ours, nbytes, against=f"JPEG quality {low}", note=note)}


def _jpeg(picture: np.ndarray, quality: int) -> tuple[int, np.ndarray]:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, optimize=True)
    return file.tell(), np.asarray(Image.open(file))


@functools.cache
def _teacher() -> object:
    opened, record = open_split(pack())
    return session(teacher_onnx(record.net, read_tensors(opened)), 1, "the teacher")


def teacher_precision(shown: np.ndarray, data: SplitData) -> float:
    """The whole teacher's mAP@0.5 in points."""
    run = _teacher().run  # type: ignore[attr-defined]
    return precision(np.stack([run(None, {"picture": picture})[0] for picture in shown]), data)
