"""What learns from labelled rows, whatever it is made of: the protocol that the slots of stage train work on.

A network is a convolutional net in PyTorch, an int8 graph in numpy, a language model with a head. A method of
a slot sees its tensors by name, its loss, its gradients, and nothing of what is behind them. A kind of
network is one file of train/networks/.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Role = Literal["weight", "bias", "scale", "statistic"]
"""What a tensor is: a matrix or kernel; what is added to a layer's output (a norm's shift too); what
multiplies it channel by channel; what a pass measures and no gradient reaches (running mean and variance,
the zero points and scales of integers)."""


@dataclass(frozen=True)
class Batch:
    """Rows to learn from. `inputs` [n, ...] are what the network's `form` says, `labels` i64 [n] count its
    classes from 0."""

    inputs: Array
    labels: I64

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Pictures:
    """Inputs are u8 [n, height, width, channels], RGB or grey; the network scales and shifts them itself."""

    height: int
    width: int
    channels: int = 3


@dataclass(frozen=True)
class Tokens:
    """Inputs are i32 [n, length] token numbers, a short text filled up with -1 behind its last token.

    `tokenizer` has `encode(text, special=False) -> list[int]`.
    """

    length: int
    tokenizer: Any


@dataclass(frozen=True)
class Features:
    """Inputs are f32 [n, *shape]: measured values, point clouds."""

    shape: tuple[int, ...]


Form = Pictures | Tokens | Features


@dataclass(frozen=True)
class Slice:
    """A part of a tensor: `indices`, rising, of its dimension `axis`."""

    axis: int
    indices: tuple[int, ...]

    def of(self, array: Array) -> Array:
        """That part of `array`, as a copy."""
        return np.take(array, np.array(self.indices, np.intp), axis=self.axis)

    def put(self, array: Array, values: Array) -> None:
        """Write `values`, of the part's shape, into `array`."""
        place = (slice(None),) * self.axis + (np.array(self.indices, np.intp),)
        array[place] = values


Wanted = Mapping[str, Slice | None]
"""Tensor name -> the part of it that learns, None for all of it."""


@runtime_checkable
class Network(Protocol):
    """See the file's head. All arrays are the network's own memory (a PyTorch parameter of the processor
    through `.detach().numpy()`): who writes into them changes the network. It is never copied behind one's
    back."""

    name: str
    """What people call it: the folder's or the file's name."""
    form: Form
    """What its inputs are."""
    classes: tuple[str, ...] | None
    """The names of the head's outputs; None where nothing names them."""
    saved_nbytes: int
    """Bytes that the last `gradients` had to keep between its way there and its way back, as measured;
    parameters and inputs are not among them, a storage counts once."""

    def tensors(self) -> Mapping[str, Array]:
        """Everything that training may change, in the order of the pass; statistics too."""

    def roles(self) -> Mapping[str, Role]:
        """What each tensor of `tensors` is."""

    @property
    def blocks(self) -> Mapping[str, tuple[str, ...]]:
        """Block name -> its tensors, in the order of the pass; the last block is the head (the classifier).

        Each tensor is in one block. No residual connection begins in one block and ends in another, so that
        a way back may stop between two of them.
        """

    def new_head(self, classes: tuple[str, ...], seed: int) -> None:
        """Put a fresh head with these outputs in the place of the old one; the same for the same seed."""

    def logits(self, inputs: Array) -> F32:
        """f32 [n, classes] of `inputs`, as in use: changes nothing, statistics included."""

    def loss(self, batch: Batch) -> float:
        """Mean cross-entropy of the labels in nats, by a pass forward alone; changes nothing."""

    def gradients(self, batch: Batch, wanted: Wanted) -> tuple[float, dict[str, F32]]:
        """The loss, and its gradient for each tensor of `wanted` (in the shape of the part, where a part is).

        Goes back no further than the lowest of them needs. May move statistics that learn (a norm that
        `Parameters.prepare` put in training mode). Sets `saved_nbytes`.
        """

    def plan(self, wanted: Wanted, rows: int) -> tuple[tuple[str, int], ...]:
        """What a step of `rows` rows will hold, as (line, bytes): `saved for the way back` (what
        `saved_nbytes` will be, exactly where the network knows it), `working set` (the most that lives
        beside that), and `engine` (its library: PyTorch's own memory), each where there is any. The tensors
        themselves are counted by who asks. For an empty `wanted`: of a pass forward alone.
        """


def identity(network: Network) -> str:
    """SHA-256, 64 hexadecimal digits, over name, type, shape and bytes of every tensor, in their order: two
    networks that have it in common are the same base for a delta."""
    found = hashlib.sha256(b"haversack-network-1\n")
    for name, array in network.tensors().items():
        values = np.ascontiguousarray(array)
        found.update(f"{name}\0{values.dtype.str}\0{array.shape}\n".encode())
        found.update(values.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def head_of(network: Network) -> tuple[str, ...]:
    """The tensors of the classifier."""
    return tuple(network.blocks.values())[-1]


def assign(array: Array, values: Array, part: Slice | None = None) -> None:
    """Write `values` into `array` (into its `part`); integers are rounded to nearest even and stay within
    their type, as a device stores them."""
    if np.issubdtype(array.dtype, np.integer):
        limits = np.iinfo(array.dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    if part is None:
        array[...] = values
    else:
        part.put(array, values.astype(array.dtype, copy=False))


def numbers_of(network: Network, wanted: Wanted) -> int:
    """How many numbers of `network` the parts in `wanted` hold."""
    tensors = network.tensors()
    return sum(
        tensors[name].size
        if part is None
        else tensors[name].size // tensors[name].shape[part.axis] * len(part.indices)
        for name, part in wanted.items()
    )


def top_blocks(asked: int | None, least: int, there: int, what: str) -> int:
    """How many blocks, of those that are `there`, a method takes: all where none are asked for. Raises
    UserError outside `least` to all of them; `what` says what there is, as in "mine has 4"."""
    count = there if asked is None else asked
    if not least <= count <= there:
        raise UserError(
            f"blocks={count} is not possible: {what}.",
            field="blocks",
            given=count,
            nearest=min(max(count, least), there),
        )
    return count


def in_order(network: Network, names: Iterable[str]) -> tuple[str, ...]:
    """`names` in the order of the pass."""
    chosen = set(names)
    return tuple(name for name in network.tensors() if name in chosen)
