"""MobileNetV2 (Sandler et al., 2018): inverted residual blocks with ReLU6, of any width.

Paper: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018, arXiv 1801.04381).
What is here: the record of the network: seventeen blocks in seven stages, each stage (t, c, n, s) of the
paper's table 2; blocks widen by t, and the first does not. Widths are multiplied by `width` and rounded to
eights; the last convolution has 1280 channels, more only for a width above 1. At width 1 and 1000 classes it
has 3,504,872 parameters and 300.8 million multiplications at 224 pixels.
What we changed: nothing; no dropout.
"""

from __future__ import annotations

from dataclasses import replace

from haversack.models.vision._record import Linear, PictureNet, Stage, Unit, chain, channels_of

SYSTEM = 20
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""(t, c, n, s): n blocks of c channels that widen by t, the first of stride s."""
VARIANTS = {
    "mobilenetv2_035": 0.35,
    "mobilenetv2_050": 0.5,
    "mobilenetv2_075": 0.75,
    "mobilenetv2_100": 1.0,
    "mobilenetv2_140": 1.4,
}
"""timm's names."""
ALIASES = {"mobilenet_v2": "mobilenetv2_100"}
"""torchvision's name."""


def record(variant: str, classes: int = 1000, *, source: str = "timm") -> PictureNet:
    """The network `variant`; who published it (`source`) changes nothing."""
    return replace(mobilenetv2(VARIANTS[variant], classes), variant=variant)


def mobilenetv2(width: float, classes: int, eps: float = 1e-5) -> PictureNet:
    """The network of `width`."""
    first = channels_of(32 * width)
    inputs, table = first, []
    for t, c, n, s in STAGES:
        outputs = channels_of(c * width)
        for index in range(n):
            table.append(Stage(outputs, inputs * t, 3, s if index == 0 else 1, "relu6"))
            inputs = outputs
    last = channels_of(1280 * max(1.0, width))
    return PictureNet(
        family="mobilenetv2",
        variant="",
        stem=Unit("stem", 3, first, "relu6", kernel=3, stride=2, eps=eps),
        blocks=chain(first, tuple(table), eps),
        stages=tuple(n for _, _, n, _ in STAGES),
        final=Unit("final", inputs, last, "relu6", eps=eps),
        hidden=None,
        classifier=Linear("classifier", last, classes),
    )
