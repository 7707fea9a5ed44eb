"""The predecessor of the slimmable ensemble: one encoder whose bottleneck has a width that is chosen.

Paper: the supervised compression with slimmable networks that arXiv 2306.12691 goes out from (its public
training code was read, [secondary]; no paper's text).
What is here: dense convolutions down to a bottleneck of 12 channels, of which the first round(12 a) are sent
for a width a, 8 bits a number between the smallest and the largest; a decoder that reads those alone (its
first convolution's weights are cut to them) with norms that keep statistics of their own for each width. It
learns as the ensemble does (slimmable_torch.distil), sandwich and all, with widths in place of members.
What we changed: the split lies where the ensemble's does, so that both answer the same server; only the
bottleneck is slimmed, which is the better of its two published forms. [inferred]: the layers before it.
Cost: every width runs the whole encoder, so a width changes bytes and hardly any time. Limits: a baseline of
the bench; no pack holds it.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from haversack.models.vision import _slim_record as record
from haversack.models.vision._record import Unit
from haversack.models.vision._slim_record import SplitNet
from haversack.models.vision._slim_student_torch import Mode, ModeNorm, Slim, through_cells
from haversack.models.vision._slim_teacher_torch import module_of

SYSTEM = 13

WIDTHS = (0.25, 0.33, 0.416, 0.5, 0.58, 0.66, 0.75, 0.83, 0.916, 1.0)
WIDEST = 12
NUMBER_BITS = 8


def sent_channels(width: float, widest: int = WIDEST) -> int:
    """The channels that are sent: the first round(widest a).

    >>> [sent_channels(width) for width in WIDTHS]
    [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    """
    return round(widest * width)


def compression(channels: int, map_side: int, picture_side: int) -> float:
    """Bytes sent, 8 bits a number, over those of the picture.

    >>> compression(3, 204, 800)
    0.065025
    """
    return channels * map_side**2 / (3 * picture_side**2)


def layers() -> tuple[Unit, Unit]:
    """What stands before the bottleneck: as dense as the teacher's first layers."""
    return Unit("first", 3, 24, "relu", 3, 2), Unit("second", 24, record.SPLIT, "relu", 3, 2)


def products(side: int) -> int:
    """Multiplications of the encoder, at any width; the bottleneck is made whole."""
    total, left = record.products(layers(), side)
    return total + 9 * record.SPLIT * WIDEST * left * left


class WidthStudent(Slim):
    """Encoder and decoder; a mode is (channels sent, 8). What `distil` asks of a student."""

    shared = False

    def __init__(self, net: SplitNet) -> None:
        super().__init__()
        self.net, self.most = net, WIDEST
        self.modes: list[Mode] = [(sent_channels(width), NUMBER_BITS) for width in WIDTHS]
        self.members = nn.Sequential(
            *(module_of(layer, record.MOMENTUM) for layer in layers()),
            nn.Conv2d(record.SPLIT, WIDEST, 3, padding=1),
        )
        sizes = (WIDEST, record.SPLIT, record.SPLIT)
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            for inputs, outputs in itertools.pairwise(sizes)
        )
        self.norms = nn.ModuleList(ModeNorm(record.SPLIT, len(WIDTHS), 0.1) for _ in self.convs)

    def outputs(self, x: Tensor, k: int) -> list[Tensor]:
        """The bottleneck's first k channels, each alone in its place: their sum is what is sent."""
        y = self.members(x)
        places = torch.eye(WIDEST)[:k, :, None, None]
        return [y * place for place in places]

    def sent(self, y: Tensor, bits: int) -> Tensor:
        """y as the server restores it, between its smallest and its largest value."""
        axes = (1, 2, 3)
        low, high = y.detach().amin(axes, keepdim=True), y.detach().amax(axes, keepdim=True)
        return through_cells(y, low, (high - low).clamp(min=1e-6) / 2**bits, bits)

    def decode(self, sent: Tensor, mode: Mode) -> Tensor:
        """The teacher's feature at the split, restored from the channels of `mode`."""
        at, k = self.modes.index(mode), mode[0]
        sent = sent[:, :k]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            weight = conv.weight[:, : sent.shape[1]]  # type: ignore[index]
            sent = functional.relu(norm(functional.conv2d(sent, weight, padding=1), at))
        return sent
