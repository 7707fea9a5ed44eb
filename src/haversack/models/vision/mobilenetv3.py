"""MobileNetV3 (Howard et al., 2019): inverted residual blocks with squeeze-and-excite and Hard-Swish.

Paper: Howard et al., "Searching for MobileNetV3" (ICCV 2019, arXiv 1905.02244).
What is here: the records of the large and the small network, tables 1 and 2 of the paper: a block has a
kernel, channels inside and out, a squeeze or none, ReLU in the first blocks and Hard-Swish in the others.
The squeeze has a quarter of the channels inside, rounded to eights. Behind the mean of the last
convolution's channels stands a hidden linear layer. At width 1 and 1000 classes the large one has 5,483,032
parameters, the small one 2,542,856; no dropout.
What we changed: `mobilenetv3_tiny` is ours, for pictures of 32 to 48 pixels: every block has Hard-Swish,
widening blocks widen by six, and those at the top have a squeeze.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from haversack.models.vision._record import Activation, Linear, PictureNet, Stage, Unit, chain, channels_of

SYSTEM = 20
Row = tuple[int, int, int, bool, Activation, int]
LARGE: tuple[Row, ...] = (
    (3, 16, 16, False, "relu", 1),
    (3, 64, 24, False, "relu", 2),
    (3, 72, 24, False, "relu", 1),
    (5, 72, 40, True, "relu", 2),
    (5, 120, 40, True, "relu", 1),
    (5, 120, 40, True, "relu", 1),
    (3, 240, 80, False, "hard-swish", 2),
    (3, 200, 80, False, "hard-swish", 1),
    (3, 184, 80, False, "hard-swish", 1),
    (3, 184, 80, False, "hard-swish", 1),
    (3, 480, 112, True, "hard-swish", 1),
    (3, 672, 112, True, "hard-swish", 1),
    (5, 672, 160, True, "hard-swish", 2),
    (5, 960, 160, True, "hard-swish", 1),
    (5, 960, 160, True, "hard-swish", 1),
)
"""(kernel, channels inside, channels out, squeeze, activation, stride)."""
SMALL: tuple[Row, ...] = (
    (3, 16, 16, True, "relu", 2),
    (3, 72, 24, False, "relu", 2),
    (3, 88, 24, False, "relu", 1),
    (5, 96, 40, True, "hard-swish", 2),
    (5, 240, 40, True, "hard-swish", 1),
    (5, 240, 40, True, "hard-swish", 1),
    (5, 120, 48, True, "hard-swish", 1),
    (5, 144, 48, True, "hard-swish", 1),
    (5, 288, 96, True, "hard-swish", 2),
    (5, 576, 96, True, "hard-swish", 1),
    (5, 576, 96, True, "hard-swish", 1),
)
TINY: tuple[Row, ...] = (
    (3, 16, 16, False, "hard-swish", 1),
    (3, 96, 24, False, "hard-swish", 2),
    (3, 144, 24, False, "hard-swish", 1),
    (3, 144, 32, True, "hard-swish", 1),
    (3, 192, 32, True, "hard-swish", 1),
    (3, 192, 48, True, "hard-swish", 2),
    (3, 288, 48, True, "hard-swish", 1),
    (3, 288, 48, True, "hard-swish", 1),
    (3, 288, 48, True, "hard-swish", 1),
)


@dataclass(frozen=True)
class Table:
    """A network's blocks, how many of them each stage has, the channels of its last convolution and of its
    hidden layer, and the pixels that it is made for."""

    rows: tuple[Row, ...]
    stages: tuple[int, ...]
    last: int
    hidden: int
    size: int = 224


LARGE_TABLE = Table(LARGE, (1, 2, 3, 4, 2, 3), 960, 1280)
SMALL_TABLE = Table(SMALL, (1, 2, 3, 2, 3), 576, 1024)
TINY_TABLE = Table(TINY, (1, 2, 2, 4), 288, 320, size=32)
VARIANTS: dict[str, tuple[Table, float]] = {
    "mobilenetv3_small_050": (SMALL_TABLE, 0.5),
    "mobilenetv3_small_075": (SMALL_TABLE, 0.75),
    "mobilenetv3_small_100": (SMALL_TABLE, 1.0),
    "mobilenetv3_large_075": (LARGE_TABLE, 0.75),
    "mobilenetv3_large_100": (LARGE_TABLE, 1.0),
    "mobilenetv3_tiny": (TINY_TABLE, 1.0),
}
"""timm's names, ours at the end; the width beside each."""
ALIASES = {"mobilenet_v3_small": "mobilenetv3_small_100", "mobilenet_v3_large": "mobilenetv3_large_100"}
"""torchvision's names."""


def record(variant: str, classes: int = 1000, *, source: str = "timm") -> PictureNet:
    """The network `variant`; torchvision's norms have another eps and momentum than timm's."""
    table, width = VARIANTS[variant]
    torchvision = source == "torchvision"
    made = mobilenetv3(table, width, classes, eps=1e-3 if torchvision else 1e-5)
    return replace(made, variant=variant, size=table.size, momentum=0.01 if torchvision else 0.1)


def mobilenetv3(table: Table, width: float, classes: int, eps: float) -> PictureNet:
    """The network of `table`. The channels inside follow from what comes in times the row's own ratio; a
    width below 0.75 leaves the first convolution at 16 channels (timm's rule)."""
    first = 16 if width < 0.75 else channels_of(16 * width)
    inputs, before, stages = first, 16, []
    for kernel, inner, outputs, squeeze, activation, stride in table.rows:
        wide = inputs if inner == before else channels_of(inputs * _ratio(inner, before))
        squeezed = channels_of(wide * 0.25) if squeeze else 0
        stages.append(Stage(channels_of(outputs * width), wide, kernel, stride, activation, squeezed))
        inputs, before = channels_of(outputs * width), outputs
    last = channels_of(table.last * width)
    return PictureNet(
        family="mobilenetv3",
        variant="",
        stem=Unit("stem", 3, first, "hard-swish", kernel=3, stride=2, eps=eps),
        blocks=chain(first, tuple(stages), eps),
        stages=table.stages,
        final=Unit("final", inputs, last, "hard-swish", eps=eps),
        hidden=Linear("hidden", last, table.hidden, "hard-swish"),
        classifier=Linear("classifier", table.hidden, classes),
    )


def _ratio(inner: int, inputs: int) -> float:
    """By how much a block widens, as timm states it: in hundredths."""
    return round(inner / inputs, 2)
