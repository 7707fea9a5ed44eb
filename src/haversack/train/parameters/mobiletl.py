"""MobileTL: the top blocks of a MobileNet learn, and keep half as much for the way back.

Paper: Chiang, Frumkin, Liang and Marculescu, "MobileTL: On-device Transfer Learning with Inverted Residual
Blocks" (AAAI 2023, arXiv 2212.03246).
What is here: an inverted residual block widens by t, filters each channel, and narrows; its two inner norms
and activations see maps t times as wide as the block's input. Used together in the top `blocks` blocks, the
last convolution and the classifier:

    shift-only inner norms    y = a x + b with a = gamma / sqrt(variance + eps) fixed and b learned:
                              g_x = a g_y, g_b = sum g_y; nothing is kept (a trained norm keeps its input)
    signed activations        forward unchanged, g_x = g_y M with one bit an element: ReLU6 M = [0 < x < 6],
                              exact; Hard-Swish M = [x > 0] in place of its slope
    top blocks only           what lies below runs as in use, and no gradient enters it

The norm behind the narrowing convolution learns in full, with the statistics of its batch. Kept for a block
of stride 1 with as many channels out as in, in units of its input: `standard_units` and `mobiletl_units`.
What we changed: the threshold 0 of the signed Hard-Swish is [inferred]; its slope is 1/2 there. The last
convolution's norm counts as an inner one, being as wide and followed by an activation [inferred].
Cost: products as in fine-tuning of the same blocks. A mask is packed and unpacked in each step.
Limits: networks of models/vision; PyTorch (extra workshop). Norms that measure their batch need more than
one row in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from haversack.core.method import Method, parameter
from haversack.models.vision import _counts
from haversack.models.vision._counts import Way
from haversack.models.vision._record import PictureNet, Squeeze, Unit, statistic
from haversack.train._network import Network, top_blocks
from haversack.train._slots import Learned
from haversack.train._training import torch_part

F32 = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint8]


def affine_shift(x: F32, a: F32, shift: F32) -> F32:
    """y = a x + shift for x [n, channels, h, w] and a and shift [channels]."""
    return a[:, None, None] * x + shift[:, None, None]


def affine_shift_back(gradient: F32, a: F32) -> tuple[F32, F32]:
    """(g_x, g_shift) of `affine_shift`; x is not needed."""
    return a[:, None, None] * gradient, gradient.sum((0, 2, 3))


def hard_swish(x: F32) -> F32:
    """x relu6(x + 3) / 6."""
    return x * np.clip(x + 3, 0, 6) / np.float32(6)


def hard_swish_slope(x: F32) -> F32:
    """The derivative of `hard_swish`: 0 up to -3, (2 x + 3) / 6 between, 1 from 3 on."""
    inside = (2 * x + 3) / np.float32(6)
    return np.where(x <= -3, 0, np.where(x >= 3, 1, inside)).astype(np.float32)


def signed_mask(x: F32, activation: str) -> Bits:
    """What stands for the slope on the way back, packed eight elements a byte, first element highest:
    [0 < x < 6] of relu6, [x > 0] of hard-swish."""
    mask = (x > 0) & (x < 6) if activation == "relu6" else x > 0
    return np.packbits(mask)


def signed_back(gradient: F32, mask: Bits) -> F32:
    """The gradient where the mask is set, 0 elsewhere."""
    bits = np.unpackbits(mask, count=gradient.size).reshape(gradient.shape)
    return gradient * bits


def standard_units(t: float, *, hard_swish: bool = False, squeeze: bool = False) -> float:
    """What a block keeps when all of it learns, in units of its input: inputs of three convolutions and
    three norms, ReLU6 as one bit (Hard-Swish its input), the input of the squeeze's product."""
    return 2 + 4 * t + (2 * t if hard_swish else t / 16) + (t if squeeze else 0)


def mobiletl_units(t: float, *, squeeze: bool = False) -> float:
    """What a block keeps with MobileTL: the same without the inner norms, activations one bit each."""
    return 2 + 2 * t + t / 16 + (t if squeeze else 0)


@dataclass(frozen=True)
class Report:
    """What a training of a network costs: bytes kept for the way back by block, of gradients, of an
    optimizer's moments; products of a step of `rows` pictures, forward and backward."""

    rows: int
    saved: dict[str, int]
    parameter_nbytes: int
    optimizer_nbytes: int
    forward_products: int
    backward_products: int

    @property
    def saved_nbytes(self) -> int:
        """Of all blocks."""
        return sum(self.saved.values())


@dataclass(frozen=True)
class MobileTL(Method):
    name = "mobiletl"
    stage = "train"
    slot = "parameters"
    system = 20
    paper = "Chiang et al., MobileTL: On-device Transfer Learning with Inverted Residual Blocks (2023)"
    summary = "The top blocks of a MobileNet learn, with shift-only inner norms and one-bit activations."

    blocks: int = parameter(3, help="how many of the top inverted residual blocks learn")
    act: str = parameter(
        "signed",
        allowed=("signed", "exact"),
        help="the way back of Hard-Swish: its sign (one bit), or its slope (a float)",
    )
    inner_norm: str = parameter(
        "shift", allowed=("shift", "full", "frozen"), help="what learns of a block's inner norms"
    )
    last_norm: str = parameter(
        "train", allowed=("train", "frozen"), help="whether a block's last norm learns, with batch statistics"
    )
    se: str = parameter("train", allowed=("train", "frozen"), help="whether squeeze-and-excite learns")

    def way(self, record: PictureNet) -> Way:
        """How `record` learns. Raises UserError when it has fewer blocks than are asked for."""
        count = len(record.blocks)
        top_blocks(self.blocks, 1, count, f"{record.variant} has {count} inverted residual blocks")
        learned = {name for name, _ in record.classifier.tensors()}
        if record.hidden is not None:
            learned |= {name for name, _ in record.hidden.tensors()}
        measuring: set[str] = set()
        masked: set[str] = set()
        inner = [record.final]
        for block in record.blocks[count - self.blocks :]:
            for layer in block.layers():
                if isinstance(layer, Squeeze):
                    learned |= {name for name, _ in layer.tensors() if self.se == "train"}
                elif layer.name != block.project.name:
                    inner.append(layer)
            learned.add(f"{block.project.name}.conv.weight")
            self._norm(block.project, "full" if self.last_norm == "train" else "frozen", learned, measuring)
        for unit in inner:
            learned.add(f"{unit.name}.conv.weight")
            self._norm(unit, self.inner_norm, learned, measuring)
            if unit.activation == "relu6" or (unit.activation == "hard-swish" and self.act == "signed"):
                masked.add(unit.name)
        if record.hidden is not None and self.act == "signed":
            masked.add(record.hidden.name)
        return Way(frozenset(learned), frozenset(measuring), frozenset(masked))

    @staticmethod
    def _norm(unit: Unit, how: str, learned: set[str], measuring: set[str]) -> None:
        if how in ("full", "shift"):
            learned.add(f"{unit.name}.norm.bias")
        if how == "full":
            learned.add(f"{unit.name}.norm.weight")
            measuring.add(unit.name)

    def report(self, record: PictureNet, rows: int, size: int | None = None, moments: int = 2) -> Report:
        """What learning costs for pictures of `size` (default: the record's) with an optimizer that keeps
        `moments` numbers for each one that learns (Adam 2)."""
        way = self.way(record)
        return report(record, way, rows, size, moments)

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Parameters."""
        record = getattr(getattr(network, "module", None), "record", None)
        if not isinstance(record, PictureNet):
            return ()
        return tuple(f"{self.name}:blocks={count}" for count in (5, 3, 2, 1) if count <= len(record.blocks))

    def prepare(self, network: Network, seed: int) -> Learned:
        """See Parameters."""
        part = torch_part("haversack.train.parameters.mobiletl_torch", "training")
        return learned_of(network, cast(Way, part.mobiletl(getattr(network, "module", None), self)))


def learned_of(network: Network, way: Way) -> Learned:
    """What learns of a network in the order of its pass, and the statistics that move with it."""
    names: Any = network.tensors()
    return Learned(
        {name: None for name in names if name in way.learned},
        tuple(name for name in names if statistic(name) and name.rpartition(".norm.")[0] in way.batch_norms),
    )


def report(record: PictureNet, way: Way, rows: int, size: int | None = None, moments: int = 2) -> Report:
    """See MobileTL.report; of any way."""
    shapes = record.tensors() | {n: shape for one in way.beside.values() for n, shape in one.tensors()}
    numbers = sum(int(np.prod(shapes[name])) for name in way.learned)
    layers = _counts.products(record, size) | _counts.products_beside(record, way.beside, size)
    forward = sum(layers.values())
    return Report(
        rows,
        _counts.kept(record, way, rows, size),
        4 * numbers,
        4 * moments * numbers,
        rows * forward,
        rows * _counts.products_back(record, way, size),
    )
