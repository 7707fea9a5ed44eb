"""What a network of inverted residual blocks is made of: layers by name, their sizes, and nothing that runs.

Layers are named by what they do: `stem`, `blocks.3.expand`, `blocks.3.depthwise`, `blocks.3.squeeze`,
`blocks.3.project`, `final`, `hidden`, `classifier`. Tensors are `LAYER.conv.weight`, `LAYER.norm.weight` (the
scale), `.norm.bias` (the shift), `.norm.running_mean`, `.norm.running_var`; a squeeze has
`.reduce.weight/.bias` and `.expand.weight/.bias`; linear layers `.weight` and `.bias`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Activation = Literal["relu", "relu6", "hard-swish"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def channels_of(width: float, divisor: int = 8) -> int:
    """`width` rounded to a multiple of `divisor`, never more than a tenth below it (MobileNetV2's rule)."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


@dataclass(frozen=True)
class Unit:
    """A convolution without bias, padded by (kernel - 1) / 2, a batch norm, and an activation or none."""

    name: str
    inputs: int
    outputs: int
    activation: Activation | None
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    eps: float = 1e-5

    def map_after(self, size: int) -> int:
        """The side of the map that leaves, for one of side `size` that comes."""
        return (size - self.kernel + 2 * ((self.kernel - 1) // 2)) // self.stride + 1

    @property
    def products(self) -> int:
        """Multiplications for each place of the map that leaves."""
        return self.outputs * (self.inputs // self.groups) * self.kernel**2

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape), in the order of use."""
        shape = (self.outputs, self.inputs // self.groups, self.kernel, self.kernel)
        yield f"{self.name}.conv.weight", shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{self.name}.norm.{part}", (self.outputs,)


@dataclass(frozen=True)
class Squeeze:
    """Squeeze-and-excite: the mean of each channel, two 1x1 convolutions with biases and a ReLU between
    them, and a hard sigmoid, by which the channel is multiplied."""

    name: str
    channels: int
    inner: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape), in the order of use."""
        yield f"{self.name}.reduce.weight", (self.inner, self.channels, 1, 1)
        yield f"{self.name}.reduce.bias", (self.inner,)
        yield f"{self.name}.expand.weight", (self.channels, self.inner, 1, 1)
        yield f"{self.name}.expand.bias", (self.channels,)


@dataclass(frozen=True)
class Block:
    """An inverted residual block. `expand` None: as many channels inside as come in."""

    name: str
    expand: Unit | None
    depthwise: Unit
    squeeze: Squeeze | None
    project: Unit

    @property
    def inputs(self) -> int:
        """Channels that come in."""
        return (self.expand or self.depthwise).inputs

    @property
    def residual(self) -> bool:
        """Whether what comes in is added to what leaves."""
        return self.depthwise.stride == 1 and self.inputs == self.project.outputs

    def layers(self) -> Iterator[Unit | Squeeze]:
        """In the order of use."""
        if self.expand is not None:
            yield self.expand
        yield self.depthwise
        if self.squeeze is not None:
            yield self.squeeze
        yield self.project


@dataclass(frozen=True)
class Beside:
    """A branch that a method puts beside a block: means of squares of `pool` places, two units, and the map
    brought to the size of the block's and added to it."""

    pool: int
    first: Unit
    second: Unit

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape), in the order of use."""
        yield from self.first.tensors()
        yield from self.second.tensors()


@dataclass(frozen=True)
class Linear:
    """A linear layer with a bias, and an activation or none."""

    name: str
    inputs: int
    outputs: int
    activation: Activation | None = None

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape), in the order of use."""
        yield f"{self.name}.weight", (self.outputs, self.inputs)
        yield f"{self.name}.bias", (self.outputs,)


@dataclass(frozen=True)
class PictureNet:
    """A classifier of pictures: a first convolution, blocks, a last convolution, the mean of each channel,
    and one or two linear layers.

    Inputs are RGB in 0..1 less `mean`, divided by `std`, [n, 3, size, size] (`size` is what it was made
    for; any larger than its total stride will do). `stages`: how many blocks each stage has, whose number is
    part of published tensor names. `momentum` is PyTorch's: the share of a batch in the running statistics.
    `labels` name the classes where something names them.
    """

    family: str
    variant: str
    stem: Unit
    blocks: tuple[Block, ...]
    stages: tuple[int, ...]
    final: Unit
    hidden: Linear | None
    classifier: Linear
    size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    momentum: float = 0.1
    labels: tuple[str, ...] | None = None

    def layers(self) -> Iterator[Unit | Squeeze | Linear]:
        """Every layer, in the order of use."""
        yield self.stem
        for block in self.blocks:
            yield from block.layers()
        yield self.final
        if self.hidden is not None:
            yield self.hidden
        yield self.classifier

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, in the order of use."""
        return {name: shape for layer in self.layers() for name, shape in layer.tensors()}

    def groups(self) -> dict[str, tuple[str, ...]]:
        """The tensors of `stem`, of each block, of `final` (with the hidden layer) and of `classifier`."""
        last = (self.final,) if self.hidden is None else (self.final, self.hidden)
        parts = [
            ("stem", (self.stem,)),
            *((block.name, tuple(block.layers())) for block in self.blocks),
            ("final", last),
            ("classifier", (self.classifier,)),
        ]
        return {name: tuple(one for layer in held for one, _ in layer.tensors()) for name, held in parts}

    def block(self, name: str) -> Block:
        """The block of that name."""
        return next(block for block in self.blocks if block.name == name)

    def inputs_of(self, start: int) -> int:
        """Channels of the map that comes into block `start` (of the last convolution behind all blocks)."""
        return self.blocks[start].inputs if start < len(self.blocks) else self.final.inputs

    def parameters(self) -> int:
        """How many numbers training may change; statistics are not among them."""
        return sum(math.prod(shape) for name, shape in self.tensors().items() if not statistic(name))

    def with_classes(self, labels: tuple[str, ...]) -> PictureNet:
        """The same network with a classifier for `labels`."""
        return replace(self, labels=labels, classifier=replace(self.classifier, outputs=len(labels)))


def statistic(name: str) -> bool:
    """Whether a tensor is a running mean or variance."""
    return name.endswith((".running_mean", ".running_var"))


@dataclass(frozen=True)
class Stage:
    """How a family's table states a block: see `inverted_residual`. `inner` is the number of channels
    inside, `squeezed` that of its squeeze (0: none)."""

    outputs: int
    inner: int
    kernel: int
    stride: int
    activation: Activation
    squeezed: int = 0


def inverted_residual(index: int, inputs: int, stage: Stage, eps: float) -> Block:
    """Block number `index`; one that does not widen has no expansion."""
    name, inner = f"blocks.{index}", stage.inner
    expand = None
    if inner != inputs:
        expand = Unit(f"{name}.expand", inputs, inner, stage.activation, eps=eps)
    return Block(
        name,
        expand,
        Unit(
            *(f"{name}.depthwise", inner, inner, stage.activation),
            kernel=stage.kernel,
            stride=stage.stride,
            groups=inner,
            eps=eps,
        ),
        Squeeze(f"{name}.squeeze", inner, stage.squeezed) if stage.squeezed else None,
        Unit(f"{name}.project", inner, stage.outputs, None, eps=eps),
    )


def chain(inputs: int, stages: tuple[Stage, ...], eps: float) -> tuple[Block, ...]:
    """Blocks one behind the other."""
    found = []
    for index, stage in enumerate(stages):
        found.append(inverted_residual(index, inputs, stage, eps))
        inputs = stage.outputs
    return tuple(found)
