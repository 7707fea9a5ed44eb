"""ZeroQAT's equivalent transformation: scales and shifts of channels that move into the next matrices.

Paper: ZeroQAT (arXiv 2509.00031, 2025), after OmniQuant; see zeroqat.py.

    Y = X W + B = [(X - d) / s] [s W] + [B + d W]

The places of a block, each with one s (and, where there are biases to hold it, one d) for every channel:
  a  the norm before attention -> query, key, value
  b  the norm before the feed-forward layer -> its first matrices
  c  value -> output of attention, where every key has one query
  d  query / key: rows of one divided, rows of the other multiplied; no d
What produces X takes (w / s, (b - d) / s), what consumes it (s W, B + W d): a vector is added to a bias, and
nothing is computed while the model runs. In `d` a rotation turns pairs of channels, which therefore share
their s; a norm of heads leaves no such place. Scales of rows change no row's own grid, so `d`, which the
paper needs where keys are rounded too, is merged and tested here, and left at 1.
These are pure functions of arrays or tensors of PyTorch, the same for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.models._architecture import Attention, Block, FeedForward, Linear, Norm

F32 = npt.NDArray[np.float32]
Tensors = Mapping[str, Any]

SMALLEST = 1e-5
ALPHA_WITH_SHIFTS, ALPHA = 0.75, 0.5
"""The share of the difficulty that moves into weights: of OPT and its like, and of Llama's."""


@dataclass(frozen=True)
class Place:
    """`kind` norm, value or heads. `producer` is a norm's weight (which adds `offset` to it) or a matrix,
    `bias` its bias; `consumers` (matrix, bias) take the channels. Of kind heads the one consumer's rows, and
    its bias, are multiplied; `spread` [rows of the producer] says which number of s each takes, `own` [rows
    of the consumer] the same of these."""

    kind: str
    producer: str
    bias: str | None
    consumers: tuple[tuple[str, str | None], ...]
    offset: float = 0.0
    spread: tuple[int, ...] = ()
    own: tuple[int, ...] = ()

    @property
    def shifts(self) -> bool:
        """Whether there are biases to hold a d."""
        inside = self.bias is not None and all(bias is not None for _, bias in self.consumers)
        return self.kind != "heads" and inside

    @property
    def learns(self) -> bool:
        """Whether s changes what is rounded."""
        return self.kind != "heads"

    def channels(self, tensors: Tensors) -> int:
        """Numbers of s."""
        return 1 + max(self.own) if self.kind == "heads" else len(tensors[self.producer])


def places_of(block: Block) -> tuple[Place, ...]:
    """The places of a block, in order of use; none for what its norms feed beside these layers."""
    found: list[Place] = []
    known = all(isinstance(branch.layer, Attention | FeedForward) for branch in block.branches)
    fed: dict[str, tuple[Norm, list[Linear]]] = {}
    for branch in block.branches:
        if branch.norm is not None:
            entry = fed.setdefault(branch.norm.weight, (branch.norm, []))
            entry[1].extend(branch.layer.products()[0])
    for norm, linears in fed.values() if known else ():
        consumers = tuple((one.weight, one.bias) for one in linears)
        found.append(Place("norm", norm.weight, norm.bias, consumers, norm.offset))
    attention = block.attention
    if attention is None:
        return tuple(found)
    if attention.heads == attention.key_value_heads:
        out = ((attention.output.weight, attention.output.bias),)
        found.append(Place("value", attention.value.weight, attention.value.bias, out))
    if attention.query_norm is None and attention.key_norm is None:
        found.append(_heads(attention))
    return tuple(found)


def _heads(layer: Attention) -> Place:
    """The place between query and key: one number for each channel of a key, or pair of those."""
    width, rope = layer.head_width, layer.rope
    inside = np.arange(width)
    if rope is not None:
        half = rope.width // 2
        pair = np.arange(half)
        one, two = (pair, pair + half) if rope.style == "half" else (2 * pair, 2 * pair + 1)
        inside[two] = inside[one]
    _, inside = np.unique(inside, return_inverse=True)
    own = (np.arange(layer.key_value_heads)[:, None] * (inside.max() + 1) + inside).reshape(-1)
    shared = layer.heads // layer.key_value_heads
    spread = np.repeat(own.reshape(layer.key_value_heads, width), shared, axis=0).reshape(-1)
    key = ((layer.key.weight, layer.key.bias),)
    return Place(
        *("heads", layer.query.weight, layer.query.bias, key),
        spread=tuple(spread.tolist()),
        own=tuple(own.tolist()),
    )


def moved(place: Place, tensors: Tensors, s: Any, d: Any = None) -> dict[str, Any]:
    """The tensors that `place` changes, with s [channels] and d [channels] in them; arrays or tensors."""
    found: dict[str, Any] = {}
    producer, bias = tensors[place.producer], place.bias
    if place.kind == "heads":
        found[place.producer] = producer / s[list(place.spread)][:, None]
        if bias is not None:
            found[bias] = tensors[bias] / s[list(place.spread)]
        key, key_bias = place.consumers[0]
        found[key] = tensors[key] * s[list(place.own)][:, None]
        if key_bias is not None:
            found[key_bias] = tensors[key_bias] * s[list(place.own)]
        return found
    if place.kind == "norm":
        found[place.producer] = (producer + place.offset) / s - place.offset
    else:
        found[place.producer] = producer / s[:, None]
    if bias is not None:
        found[bias] = tensors[bias] / s if d is None else (tensors[bias] - d) / s
    for name, consumer_bias in place.consumers:
        found[name] = tensors[name] * s
        if d is not None and consumer_bias is not None:
            found[consumer_bias] = tensors[consumer_bias] + tensors[name] @ d
    return found


def merged(places: Mapping[Place, tuple[Any, Any]], tensors: Tensors) -> dict[str, Any]:
    """All tensors of a block with (s, d) of each of `places` in them."""
    found = dict(tensors)
    for place, (s, d) in places.items():
        found.update(moved(place, found, s, d))
    return found


def first_scales(largest: F32, weights: F32, alpha: float) -> F32:
    """s = max|X|^alpha / max|W|^(1 - alpha) f32 [channels], at least 1e-5; a channel that nothing came
    through is left alone."""
    seen = largest > 0
    top = np.where(seen, largest, 1.0).astype(np.float64) ** alpha
    found = top / np.maximum(weights, SMALLEST).astype(np.float64) ** (1 - alpha)
    return np.where(seen, np.maximum(found, SMALLEST), 1.0).astype(np.float32)


def column_peaks(place: Place, tensors: Tensors) -> F32:
    """max|W| f32 [channels] over the consumers of `place`."""
    found: F32 = np.max([np.abs(tensors[name]).max(axis=0) for name, _ in place.consumers], axis=0)
    return found
