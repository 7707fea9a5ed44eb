"""Schemes of sparse updates and the memory that they are counted to take, in bits of one example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.models.graph._ir import DepthwiseConv2d, Graph
from haversack.models.graph.training import conv_names

KIB_BITS = 8 * 1024
RATIOS = (0.125, 0.25, 0.5, 1.0)
"""Shares of a layer's channels that are tried."""


@dataclass(frozen=True)
class Conv:
    """One convolution as the counting sees it. `channels`: those that may be chosen from, of the input (of a
    depthwise one: all it has)."""

    weight: str
    bias: str
    depthwise: bool
    channels: int
    outputs: int
    in_places: int
    out_numbers: int
    kernel_numbers: int

    def kept(self, ratio: float) -> int:
        """Channels whose weights learn."""
        return int(self.channels * ratio)

    def bias_bits(self) -> int:
        """Of a bias that learns, and of what the way back through this layer keeps: a bit an output."""
        return self.out_numbers + 32 * self.outputs

    def weight_bits(self, ratio: float) -> int:
        """Of the weights of kept channels."""
        numbers = self.kept(ratio) * self.kernel_numbers
        return 8 * (numbers if self.depthwise else numbers * self.outputs)

    def input_bits(self, ratio: float) -> int:
        """Of the saved input's kept channels."""
        return 8 * self.in_places * self.kept(ratio)


def convolutions(graph: Graph) -> tuple[Conv, ...]:
    """The convolutions of `graph` in order, its classifier left out."""
    ops = {op.weight: op for op in graph.convolutions()}
    found = []
    for weight, bias in conv_names(graph):
        op = ops[weight]
        x, y, kernel = (graph.tensors[name].shape for name in (op.x, op.y, weight))
        depthwise = isinstance(op, DepthwiseConv2d)
        kernel_numbers = kernel[0] * kernel[1] if depthwise else kernel[1] * kernel[2]
        assert bias is not None
        found.append(
            Conv(weight, bias, depthwise, x[-1], y[-1], x[0] * x[1], y[0] * y[1] * y[2], kernel_numbers)
        )
    return tuple(found)


@dataclass(frozen=True)
class Scheme:
    """What learns: biases of the last `biases` convolutions, and of those in `layers` (indices, rising) the
    share of channels in `ratios` (0: none). The classifier always learns."""

    biases: int
    layers: tuple[int, ...] = ()
    ratios: tuple[float, ...] = ()

    @classmethod
    def last(cls, count: int, total: int) -> Scheme:
        """Weights and biases of the last `count` of `total` convolutions, whole."""
        return cls(count, tuple(range(total - count, total)), (1.0,) * count)

    def check(self, total: int) -> Scheme:
        """Itself. Raises UserError for what is no scheme of a network with `total` convolutions."""
        if not 0 <= self.biases <= total:
            raise UserError(
                f"biases={self.biases} is not possible: the network has {total} convolutions.",
                field="biases",
                given=self.biases,
                nearest=min(max(self.biases, 0), total),
            )
        if len(self.layers) != len(self.ratios):
            raise UserError(
                f"{len(self.layers)} layers have {len(self.ratios)} ratios; give one for each.",
                field="ratios",
                given=len(self.ratios),
                nearest=len(self.layers),
            )
        if list(self.layers) != sorted(set(self.layers)):
            shown = "-".join(map(str, self.layers))
            raise UserError(
                f"layers={shown} are not rising without repeats; give them as "
                f"{'-'.join(map(str, sorted(set(self.layers))))}.",
                field="layers",
                given=shown,
            )
        first = total - self.biases
        for layer in self.layers:
            if not first <= layer < total:
                raise UserError(
                    f"layer {layer} is outside the {self.biases} whose biases learn (allowed {first} to "
                    f"{total - 1}); raise biases to {total - layer} or leave it out.",
                    field="layers",
                    given=layer,
                    nearest=min(max(layer, first), total - 1),
                )
        for ratio in self.ratios:
            if not 0 <= ratio <= 1:
                raise UserError(
                    f"ratio {ratio} is not from 0 to 1.",
                    field="ratios",
                    given=ratio,
                    nearest=min(max(ratio, 0.0), 1.0),
                )
        return self

    def __str__(self) -> str:
        text = f"sparse:biases={self.biases}"
        if not self.layers:
            return text
        layers = "-".join(map(str, self.layers))
        ratios = "-".join(f"{ratio:g}" for ratio in self.ratios)
        return f"{text},layers={layers},ratios={ratios}"


@dataclass(frozen=True)
class MemoryReport:
    """Bits by class: `weights` (weights and biases that learn), `activations` (saved inputs and masks, the
    classifier's input)."""

    weights: int
    activations: int

    @property
    def bits(self) -> int:
        return self.weights + self.activations

    @property
    def kib(self) -> float:
        """Units of 1024 bytes, as the published figures are."""
        return self.bits / KIB_BITS


def memory_report(convs: Sequence[Conv], scheme: Scheme, features: int) -> MemoryReport:
    """The published count. `features`: inputs of the classifier. Raises UserError for what is no scheme."""
    scheme.check(len(convs))
    weights, activations = 0, 8 * features
    for conv in convs[len(convs) - scheme.biases :]:
        weights += 32 * conv.outputs
        activations += conv.out_numbers
    for layer, ratio in zip(scheme.layers, scheme.ratios, strict=True):
        weights += convs[layer].weight_bits(ratio)
        activations += convs[layer].input_bits(ratio)
    return MemoryReport(weights, activations)


def features_of(graph: Graph) -> int:
    """Inputs of the classifier."""
    return graph.tensors[graph.linears()[-1].x].size


def kept_channels(weight: npt.NDArray[np.int8], count: int, choice: str, seed: int) -> tuple[int, ...]:
    """`count` channels, rising: those whose slices of the stored integers have the largest (`magnitude+`) or
    smallest (`magnitude-`) norm, or any (`random`). Channels are the last dimension."""
    channels = weight.shape[-1]
    if choice == "random":
        order = np.random.default_rng([seed, channels, count]).permutation(channels)
    else:
        flat = weight.reshape(-1, channels).astype(np.int64)
        sizes = np.square(flat).sum(axis=0)
        order = np.argsort(-sizes if choice == "magnitude+" else sizes, kind="stable")
    return tuple(sorted(int(each) for each in order[:count]))
