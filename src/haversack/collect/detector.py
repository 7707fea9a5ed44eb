"""S4, the third gate: which hands are in the picture, and do they hold something.

Paper: AoE (arXiv 2602.23893); the detector is a plug-in, its outputs are [inferred].

A detector is anything with `detect(picture, moving) -> hands`: boxes, side, score, contact, all in [0, 1].
Two come with the package. `skin` needs no weights: pixels of a skin's chroma (in YCbCr), opened and joined to
blobs, of which large compact ones in the lower part of the picture are hands; contact is the share of the
blob's surroundings that moves along without being skin. `hands` is a small trained network (28 thousand
parameters, depthwise blocks on 192 x 108, anchors at strides 8 and 16; reference/train_hands.py), an ONNX
file that the phone app runs as well. `OnnxDetector` runs any ONNX model with outputs boxes [n, 4], scores
[n], sides [n], contacts [n] over one RGB picture, through ONNX Runtime.

Cost: `skin` about 2 ms at 160 x 90, `hands` 5 million multiply-adds. Limits: chroma separates skin from most
indoor colours, not from wood and cardboard, and it fails in coloured light; `hands` has seen rendered hands
alone (its card says how well), so for people's hands bring a model of your own.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from haversack.collect._tables import Hand
from haversack.collect.motion_gate import HEIGHT, WIDTH, Blocks
from haversack.core.errors import MissingExtraError, UserError

U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
SYSTEM = 1
HANDS = Path(str(files("haversack").joinpath("reference_models", "hands", "hands.onnx")))
"""The small trained network that ships with the package."""


class Detector(Protocol):
    """What finds hands: `picture` u8 [height, width, 3] RGB, `moving` the blocks' own motion at 160 x 90."""

    name: str

    def detect(self, picture: U8, moving: Blocks) -> list[Hand]:
        """The hands, best first."""


@dataclass(frozen=True)
class SkinLimits:
    """Ranges of Cb and Cr that are skin, and what a blob must be (shares of the picture)."""

    cb: tuple[float, float] = (77.0, 127.0)
    cr: tuple[float, float] = (137.0, 175.0)
    least_area: float = 0.006
    full_area: float = 0.02
    most_area: float = 0.45
    lowest: float = 0.35
    carried_px: float = 0.4


def skin_mask(picture: U8, limits: SkinLimits) -> Bool:
    """Which pixels of a 160 x 90 sampling have a skin's chroma: bool [90, 160]."""
    height, width = picture.shape[:2]
    rows, columns = np.arange(HEIGHT) * height // HEIGHT, np.arange(WIDTH) * width // WIDTH
    red, green, blue = (picture[rows][:, columns, at].astype(np.float32) for at in range(3))
    cb = 128 - 0.168736 * red - 0.331264 * green + 0.5 * blue
    cr = 128 + 0.5 * red - 0.418688 * green - 0.081312 * blue
    found: Bool = (cb > limits.cb[0]) & (cb < limits.cb[1]) & (cr > limits.cr[0]) & (cr < limits.cr[1])
    return opened(found)


def opened(mask: Bool) -> Bool:
    """Without what is thinner than three pixels."""
    return _spread(_shrunk(mask))


def _shrunk(mask: Bool) -> Bool:
    padded = np.pad(mask, 1)
    kept = mask.copy()
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            kept &= padded[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
    return kept


def _spread(mask: Bool) -> Bool:
    padded = np.pad(mask, 1)
    grown = np.zeros_like(mask)
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            grown |= padded[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
    return grown


def blobs(mask: Bool) -> list[tuple[int, int, int, int, int]]:
    """Connected parts (4 neighbours) as (top, left, bottom, right, pixels), largest first: runs of rows
    joined by union-find."""
    parent: list[int] = []
    boxes: list[list[int]] = []

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    before: list[tuple[int, int, int]] = []
    for row in range(mask.shape[0]):
        edges = np.flatnonzero(np.diff(np.pad(mask[row].astype(np.int8), 1)))
        runs: list[tuple[int, int, int]] = []
        for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            label = len(parent)
            parent.append(label)
            boxes.append([row, begin, row + 1, end, end - begin])
            for left, right, other in before:
                if left < end and begin < right:
                    one, two = root(label), root(other)
                    if one != two:
                        parent[two] = one
                        mine, theirs = boxes[one], boxes[two]
                        boxes[one] = [
                            *(min(mine[at], theirs[at]) for at in (0, 1)),
                            *(max(mine[at], theirs[at]) for at in (2, 3)),
                            mine[4] + theirs[4],
                        ]
            runs.append((begin, end, label))
        before = runs
    found = [(b[0], b[1], b[2], b[3], b[4]) for at, b in enumerate(boxes) if root(at) == at]
    return sorted(found, key=lambda box: -box[4])


class SkinDetector:
    """Hands by the colour of skin; needs no weights."""

    name = "skin"

    def __init__(self, limits: SkinLimits | None = None) -> None:
        self.limits = limits or SkinLimits()

    def detect(self, picture: U8, moving: Blocks) -> list[Hand]:
        """At most two hands, the larger first."""
        limits, mask = self.limits, skin_mask(picture, self.limits)
        hands: list[Hand] = []
        for top, left, bottom, right, pixels in blobs(mask):
            area = pixels / mask.size
            if area < limits.least_area or len(hands) == 2:
                break
            filled = pixels / ((bottom - top) * (right - left))
            if area > limits.most_area or bottom / HEIGHT < limits.lowest or filled < 0.2:
                continue
            score = min(1.0, area / limits.full_area) * min(1.0, filled / 0.35)
            contact = carried((top, left, bottom, right), mask, moving, limits.carried_px)
            side = int((left + right) / 2 > WIDTH / 2)
            box = (left / WIDTH, top / HEIGHT, right / WIDTH, bottom / HEIGHT)
            hands.append(Hand(*box, score=score, contact=contact, side=side))
        return hands


def carried(box: tuple[int, int, int, int], skin: Bool, moving: Blocks, least_px: float) -> float:
    """The share of blocks about a hand that move although they are no skin: what is carried along."""
    top, left, bottom, right = box
    grown = (left - 12, top - 12, right + 12, bottom + 12)
    near = moves = 0
    for (x, y), motion in zip(moving.centres.tolist(), moving.motion, strict=True):
        if not (grown[0] <= x <= grown[2] and grown[1] <= y <= grown[3]):
            continue
        around = skin[max(0, int(y) - 6) : int(y) + 7, max(0, int(x) - 6) : int(x) + 7]
        if around.mean() > 0.5:
            continue
        near += 1
        moves += float(np.hypot(*motion)) > least_px
    return min(1.0, 2.0 * moves / near) if near else 0.0


class OnnxDetector:
    """A detector of your own in ONNX: one float input [1, 3, height, width] in [0, 1], outputs named boxes,
    scores, sides, contacts. Raises UserError for a model that is none of these."""

    def __init__(self, path: Path, *, least_score: float = 0.3, overlap: float = 0.45) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("a detector in ONNX", "onnxruntime", "onnx") from error
        self.name, self._least, self._overlap = f"onnx:{path.name}", least_score, overlap
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            what = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path} is no ONNX model ({what}).", field="detector", given=str(path)
            ) from error
        names = {output.name for output in self._session.get_outputs()}
        missing = {"boxes", "scores", "sides", "contacts"} - names
        inputs = self._session.get_inputs()
        if missing or len(inputs) != 1 or not all(isinstance(side, int) for side in inputs[0].shape[2:]):
            raise UserError(
                f"{path} is no hand detector: it needs one input of a fixed size and the outputs boxes, "
                f"scores, sides, contacts (missing: {', '.join(sorted(missing)) or 'none'}).",
                field="detector",
                given=str(path),
            )
        self._input = inputs[0]

    def detect(self, picture: U8, moving: Blocks) -> list[Hand]:
        """At most two hands, after suppression of overlapping boxes."""
        height, width = self._input.shape[2:]
        rows = np.arange(height) * picture.shape[0] // height
        columns = np.arange(width) * picture.shape[1] // width
        given = picture[rows][:, columns].transpose(2, 0, 1)[None].astype(np.float32) / 255
        wanted = ["boxes", "scores", "sides", "contacts"]
        boxes, scores, sides, contacts = self._session.run(wanted, {self._input.name: given})
        return suppressed(boxes, scores, sides, contacts, self._least, self._overlap)


def suppressed(
    boxes: Any,
    scores: Any,
    sides: Any,
    contacts: Any,
    least: float = 0.3,
    overlap: float = 0.45,
    most: int = 2,
) -> list[Hand]:
    """Non-maximum suppression: the best boxes [n, 4] (x0 y0 x1 y1, shares) that overlap by less than
    `overlap`."""
    kept: list[Hand] = []
    for at in np.argsort(-np.asarray(scores, np.float64), kind="stable"):
        score = float(scores[at])
        if score < least or len(kept) == most:
            break
        x0, y0, x1, y1 = (float(np.clip(value, 0, 1)) for value in boxes[at])
        hand = Hand(x0, y0, x1, y1, min(1.0, score), float(np.clip(contacts[at], 0, 1)), int(sides[at] > 0.5))
        if x1 > x0 and y1 > y0 and all(iou(hand, other) < overlap for other in kept):
            kept.append(hand)
    return kept


def iou(one: Hand, other: Hand) -> float:
    """Intersection over union of two boxes."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = sum((hand.x1 - hand.x0) * (hand.y1 - hand.y0) for hand in (one, other))
    return both / (areas - both)


def make_detector(name: str) -> Detector:
    """`skin`, `hands`, or the path of an ONNX model. Raises UserError for what is none of these."""
    if name == "skin":
        return SkinDetector()
    if name == "hands":
        return OnnxDetector(HANDS)
    if name.endswith(".onnx"):
        return OnnxDetector(Path(name))
    raise UserError(
        f"detector {name!r} is not known (allowed: skin, hands, or a file that ends in .onnx).",
        field="detector",
        given=name,
        nearest="hands",
    )
