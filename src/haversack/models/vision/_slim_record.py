"""What the slimmable split is made of: members of the encoder, the decoder, and the teacher it is cut out of.

Layers are those of `_record.py`. A member is EfficientNet-B2's first stages at a quarter of their width,
with the hard swish and hard sigmoid of MobileNetV3 in place of their soft forms. The teacher is a small
residual network whose `head` ends where the split lies; `mid` and `low` follow it, and `neck` joins them
for the detector. In its place a published detector can stand (_detector_record.py), cut behind its quarter
resolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from haversack.models.vision._detector_maps import Map, Sizes
from haversack.models.vision._detector_record import Detector
from haversack.models.vision._record import Block, Linear, Squeeze, Stage, Unit, inverted_residual

MEMBERS = BITS = 4
"""Most members of an ensemble, and most bits of a number that is sent."""
EPS, MOMENTUM = 1e-3, 0.01
"""Of EfficientNet's batch norms; `momentum` as PyTorch counts it."""
FEATURES = 6
STRIDE = 4
SPLIT, MID, LOW = 40, 64, 96
WIDEST_INNER = 64
"""Channels between the decoder's layers, at most."""
TASKS = ("detect", "classify")


class NoSkip(Block):
    """A block around which nothing is carried, though its sizes would allow it."""

    @property
    def residual(self) -> bool:
        return False


@dataclass(frozen=True)
class Residual:
    """Two 3x3 convolutions around which the input is carried; a ReLU after the sum."""

    name: str
    first: Unit
    second: Unit

    @classmethod
    def of(cls, name: str, channels: int) -> Residual:
        first = Unit(f"{name}.first", channels, channels, "relu", 3)
        return cls(name, first, Unit(f"{name}.second", channels, channels, None, 3))

    def layers(self) -> Iterator[Unit]:
        """In the order of use."""
        yield self.first
        yield self.second


Layer = Unit | Block | Residual


@dataclass(frozen=True)
class SplitNet:
    """The sizes that tell one split network from another: the task, its classes, and the picture's side.
    `detector`: the published detector that is its teacher (None: our own)."""

    task: str
    classes: tuple[str, ...]
    side: int = 96
    members: int = MEMBERS
    detector: Detector | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what is sent: channels, height, width."""
        return FEATURES, self.side // STRIDE, self.side // STRIDE

    @property
    def outputs(self) -> int:
        """Of the head: a score a class, for a detector also the four sides of the box."""
        return len(self.classes) + (4 if self.task == "detect" else 0)

    def decoder(self) -> tuple[Unit, ...]:
        """The decoder's layers, whose norms have statistics for every mode: to as many channels as the
        teacher has at the split, with a ReLU last where the teacher has one there."""
        outputs = SPLIT if self.detector is None else self.detector.split
        rectified = self.detector is None or self.detector.module.RECTIFIED
        inner = min(outputs, WIDEST_INNER)
        first = Unit("first", FEATURES, inner, "relu", 3)
        return first, Unit("body.0", inner, outputs, "relu" if rectified else None, 3)

    def teacher(self) -> dict[str, tuple[Layer, ...]]:
        """The stages of our own teacher, in the order of use."""
        return {
            "head": (
                Unit("head.0", 3, 24, "relu", 3, 2),
                Unit("head.1", 24, SPLIT, "relu", 3, 2),
                Residual.of("head.2", SPLIT),
            ),
            "mid": (Unit("mid.0", SPLIT, MID, "relu", 3, 2), Residual.of("mid.1", MID)),
            "low": (Unit("low.0", MID, LOW, "relu", 3, 2), Residual.of("low.1", LOW)),
            "neck": (Unit("neck.0", LOW, MID, "relu"), Unit("neck.1", MID, MID, "relu", 3)),
        }

    def final(self) -> Linear:
        """The last layer, a 1x1 convolution of the detector and a linear layer of the classifier."""
        return Linear("final", MID if self.task == "detect" else LOW, self.outputs)


def member() -> tuple[Layer, ...]:
    """The layers of one member: 6 channels, a quarter of the picture's side."""
    stem = Unit("stem", 3, 6, "relu", 3, 2, eps=EPS)
    made: list[Layer] = [stem]
    inputs = 6
    for at, (outputs, expand, stride) in enumerate(((4, 1, 1), (4, 1, 1), (6, 6, 2), (6, 6, 1), (6, 6, 1))):
        stage = Stage(outputs, inputs * expand, 3, stride, "relu", max(1, inputs // 4))
        made.append(inverted_residual(at, inputs, stage, EPS))
        inputs = outputs
    last = made[-1]
    assert isinstance(last, Block)
    made[-1] = NoSkip(last.name, last.expand, last.depthwise, last.squeeze, last.project)
    return tuple(made)


def parts(layer: Layer) -> Iterator[Unit | Squeeze]:
    """The layers that hold tensors."""
    if isinstance(layer, Unit):
        yield layer
    else:
        yield from layer.layers()


def products(layers: tuple[Layer, ...], side: int) -> tuple[int, int]:
    """Multiplications of `layers` for a map of `side`, and the side of what leaves."""
    total = 0
    for layer in layers:
        for part in parts(layer):
            if isinstance(part, Unit):
                side = part.map_after(side)
                total += part.products * side * side
            else:
                total += 2 * part.channels * part.inner
    return total, side


def costs(net: SplitNet) -> dict[str, Any]:
    """Multiplications of one member, the decoder, the teacher's head and the whole teacher (one region of a
    detector that looks at regions)."""
    one, _ = products(member(), net.side)
    decoding, _ = products(net.decoder(), net.side // STRIDE)
    if net.detector is not None:
        sizes, head = net.detector.check(net.side), Sizes(net.detector.shapes)
        net.detector.module.front(head, Map(3, net.side))
        return {"member": one, "decoder": decoding, "head": head.products, "teacher": sizes.products}
    found, side = {}, net.side
    for name, stage in net.teacher().items():
        if name == "neck":
            if net.task != "detect":
                break
            found[name] = products(stage[:1], side)[0] + products(stage[1:], 2 * side)[0]
        else:
            found[name], side = products(stage, side)
    return {"member": one, "decoder": decoding, "head": found["head"], "teacher": sum(found.values())}
