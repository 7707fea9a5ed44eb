"""ProxylessNAS-Mobile (Cai et al., 2019): inverted residual blocks whose kernels and widths were searched.

Paper: Cai, Zhu and Han, "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware" (ICLR
2019, arXiv 1812.00332).
What is here: the record of the network that was searched for phones: twenty blocks in seven stages with
ReLU6, kernels of 3, 5 and 7, widening by 3 or 6 [recalled; the total of 4,080,512 parameters agrees].
What we changed: nothing.
"""

from __future__ import annotations

from dataclasses import replace

from haversack.models.vision._record import Linear, PictureNet, Stage, Unit, chain

SYSTEM = 20
STAGES: tuple[tuple[int, int, tuple[tuple[int, int], ...]], ...] = (
    (16, 1, ((3, 1),)),
    (32, 2, ((5, 3), (3, 3))),
    (40, 2, ((7, 3), (3, 3), (5, 3), (5, 3))),
    (80, 2, ((7, 6), (5, 3), (5, 3), (5, 3))),
    (96, 1, ((5, 6), (5, 3), (5, 3), (5, 3))),
    (192, 2, ((7, 6), (7, 6), (7, 3), (7, 3))),
    (320, 1, ((7, 6),)),
)
"""(channels, stride of the first block, (kernel, widening) of each block)."""
VARIANTS = ("proxylessnas_mobile",)
ALIASES = {"proxyless_mobile": "proxylessnas_mobile"}
"""The name in the authors' repository."""


def record(variant: str, classes: int = 1000, *, source: str = "proxylessnas") -> PictureNet:
    """The network; its norms have eps 0.001."""
    return replace(proxylessnas(classes), variant=variant)


def proxylessnas(classes: int, eps: float = 1e-3) -> PictureNet:
    """The network with `classes` outputs."""
    inputs, table = 32, []
    for outputs, stride, blocks in STAGES:
        for index, (kernel, wider) in enumerate(blocks):
            table.append(Stage(outputs, inputs * wider, kernel, stride if index == 0 else 1, "relu6"))
            inputs = outputs
    return PictureNet(
        family="proxylessnas",
        variant="",
        stem=Unit("stem", 3, 32, "relu6", kernel=3, stride=2, eps=eps),
        blocks=chain(32, tuple(table), eps),
        stages=tuple(len(blocks) for _, _, blocks in STAGES),
        final=Unit("final", inputs, 1280, "relu6", eps=eps),
        hidden=None,
        classifier=Linear("classifier", 1280, classes),
    )
