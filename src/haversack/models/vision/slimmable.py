"""A slimmable ensemble of encoders: members that add up, and bits that are chosen frame by frame.

Paper: Slimmable Encoders for Flexible Split DNNs in Bandwidth and Resource Constrained IoT Systems (arXiv
2306.12691, 2023; its abstract and its public files; the text was not read).
What is here: the maths of the device half on numpy arrays, without PyTorch: y = m_1(x) + the sum of
g_i m_i(x) over the members 2 to k, gains g = 2, 1, 0.5; y to b bits; the bits packed into bytes. Members
beyond k are not computed. [inferred]: quantization by tensor; that a member learns what those before it
leave.
What we changed: levels lie evenly within mean +- clip deviations of the tensor, in the middle of their cells,
with a clip for each b that was learned; the smallest and the largest value as ends, which the specification
names, are `min_max`. With one bit these ends are outliers and both levels are far from every value. Norms are
folded into their convolutions; swish became ReLU, which runtimes join with the convolution before it.
Cost: k times a member's; 6 b / 8 bytes for each of the map's places, 24 x 24 of a picture of 96 x 96.
Limits: square pictures whose side is a multiple of 16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError, not_allowed
from haversack.models.vision._detector_record import PREFIX
from haversack.models.vision._record import Block, Squeeze, Unit
from haversack.models.vision._slim_record import (
    BITS,
    FEATURES,
    MEMBERS,
    STRIDE,
    Layer,
    SplitNet,
    member,
    parts,
)

SYSTEM = 13

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Tensors = Mapping[str, F32]
CLIPS = (1.596, 1.991, 2.344, 2.680)
"""Deviations at which the best even levels of a normal variable end, for 1 to 4 bits."""
FIRST_GAIN = 2.0


def gains(members: int = MEMBERS, first: float = FIRST_GAIN, ratio: float = 0.5) -> tuple[float, ...]:
    """g_1 = 1, g_i = first * ratio^(i - 2): 1, 2, 1, 0.5 as published."""
    return (1.0, *(first * ratio ** (at - 2) for at in range(2, members + 1)))[:members]


def payload_bytes(bits: int, side: int = 384) -> int:
    """Bytes of a picture of `side` at `bits` a number: 6 (side / 4)^2 bits / 8, rounded up.

    >>> [payload_bytes(bits) for bits in (1, 2, 3, 4)]
    [6912, 13824, 20736, 27648]
    """
    return -(-FEATURES * (side // STRIDE) ** 2 * bits // 8)


def check_mode(k: int, b: int, members: int = MEMBERS) -> None:
    """Raises UserError for a mode that there is not."""
    for name, value, most in (("k", k, members), ("b", b, BITS)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise not_allowed(name, value, range(1, most + 1))


def learned_range(y: F32, bits: int, clip: float) -> tuple[float, float]:
    """(low, step): 2^bits cells of width `step` from `low`, within mean +- clip deviations of `y`."""
    mean = float(y.mean())
    apart = np.ravel(y) - np.float32(mean)
    deviation = math.sqrt(float(apart @ apart) / apart.size)
    reach = clip * max(deviation, 1e-6)
    return mean - reach, 2 * reach / 2**bits


def min_max(y: F32, bits: int) -> tuple[float, float]:
    """(low, step) of cells between the smallest and the largest value."""
    low, high = float(y.min()), float(y.max())
    return low, max(high - low, 1e-6) / 2**bits


def quantize(y: F32, bits: int, low: float, step: float) -> U8:
    """The number of the cell of each value, 0 to 2^bits - 1."""
    cells = (y - np.float32(low)) / np.float32(step)
    return np.minimum(np.maximum(cells, 0), 2**bits - 1).astype(np.uint8)


def restore(cells: U8, low: float, step: float) -> F32:
    """The middle of each cell."""
    return (cells.astype(np.float32) + np.float32(0.5)) * np.float32(step) + np.float32(low)


def pack_bits(cells: U8, bits: int) -> bytes:
    """Cells, `bits` each, the highest first, one behind the other; the last byte is filled with zeros."""
    flat = np.ravel(cells)
    if bits == 4 and flat.size % 2 == 0:
        return (flat[::2] << 4 | flat[1::2]).tobytes()
    wide = np.unpackbits(flat[:, None], axis=1)[:, 8 - bits :]
    return np.packbits(wide).tobytes()


def unpack_bits(data: bytes, bits: int, count: int) -> U8:
    """The `count` cells of `pack_bits`. Raises UserError where the bytes are not as many as they need."""
    wanted = -(-count * bits // 8)
    if len(data) != wanted:
        raise UserError(
            f"the payload has {len(data)} bytes; {count} numbers of {bits} bits take {wanted}.",
            field="payload",
            given=len(data),
            nearest=wanted,
        )
    wide = np.unpackbits(np.frombuffer(data, np.uint8))[: count * bits].reshape(count, bits)
    return np.packbits(np.pad(wide, ((0, 0), (8 - bits, 0))), axis=1)[:, 0]


def normed(picture: U8) -> F32:
    """What the networks take of a picture u8 [h, w, 3]: f32 [3, h, w], 0.5 less, a deviation of 0.25."""
    made = np.ascontiguousarray(picture.transpose(2, 0, 1)).astype(np.float32)
    made *= np.float32(4 / 255)
    made -= np.float32(2)
    return made


def folded(tensors: Tensors, prefix: str, unit: Unit) -> tuple[F32, F32]:
    """Weight and bias of a convolution with its norm in it."""
    at = f"{prefix}{unit.name}"
    scale = tensors[f"{at}.norm.weight"] / np.sqrt(tensors[f"{at}.norm.running_var"] + unit.eps)
    weight = tensors[f"{at}.conv.weight"] * scale[:, None, None, None]
    bias = tensors[f"{at}.norm.bias"] - tensors[f"{at}.norm.running_mean"] * scale
    return weight.astype(np.float32), bias.astype(np.float32)


def convolved(x: F32, weight: F32, bias: F32, stride: int, depthwise: bool) -> F32:
    """A convolution of x [c, h, w] padded by (kernel - 1) / 2: one shifted product a place of the kernel."""
    kernel = weight.shape[2]
    pad = (kernel - 1) // 2
    high, wide = ((size + 2 * pad - kernel) // stride + 1 for size in x.shape[1:])
    if kernel == 1:
        cut = x[:, ::stride, ::stride].reshape(x.shape[0], -1)
        return (weight[:, :, 0, 0] @ cut + bias[:, None]).reshape(-1, high, wide)
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    views = [
        padded[:, i : i + stride * (high - 1) + 1 : stride, j : j + stride * (wide - 1) + 1 : stride]
        for i in range(kernel)
        for j in range(kernel)
    ]
    if depthwise:
        total = np.repeat(bias, high * wide).reshape(-1, high, wide)
        for view, factor in zip(views, weight.reshape(len(weight), -1).T, strict=True):
            total += view * factor[:, None, None]
        return total
    columns = np.stack(views, 1).reshape(-1, high * wide)
    return (weight.reshape(len(weight), -1) @ columns + bias[:, None]).reshape(-1, high, wide)


class Ensemble:
    """The members on numpy arrays, their norms folded; tensors by `members.I.LAYER...`."""

    def __init__(self, tensors: Tensors, members: int, gain: tuple[float, ...]) -> None:
        self.gain = gain
        self.layers = member()
        self._held = [self._prepared(tensors, f"members.{at}.") for at in range(members)]

    def _prepared(self, tensors: Tensors, prefix: str) -> dict[str, tuple[F32, ...]]:
        held: dict[str, tuple[F32, ...]] = {}
        for layer in self.layers:
            for part in parts(layer):
                if isinstance(part, Squeeze):
                    names = (f"{prefix}{part.name}.{end}" for end in _SQUEEZE)
                    held[part.name] = tuple(np.asarray(tensors[name], np.float32) for name in names)
                else:
                    held[part.name] = folded(tensors, prefix, part)
        return held

    def __call__(self, x: F32, k: int) -> F32:
        """y [6, h/4, w/4] of normed pixels [3, h, w] from the first `k` members."""
        total = self._member(x, 0)
        for at in range(1, k):
            total += np.float32(self.gain[at]) * self._member(x, at)
        return total

    def _member(self, x: F32, at: int) -> F32:
        for layer in self.layers:
            x = self._layer(x, layer, self._held[at])
        return x

    def _layer(self, x: F32, layer: Layer, held: Mapping[str, tuple[F32, ...]]) -> F32:
        if isinstance(layer, Unit):
            weight, bias = held[layer.name]
            made = convolved(x, weight, bias, layer.stride, layer.groups > 1)
            return made if layer.activation is None else np.maximum(made, 0, out=made)
        assert isinstance(layer, Block)
        made = x
        for part in layer.layers():
            if isinstance(part, Squeeze):
                inner, inner_bias, outer, outer_bias = held[part.name]
                mean = made.mean((1, 2))
                reduced = np.maximum(inner[:, :, 0, 0] @ mean + inner_bias, 0)
                gate = np.clip((outer[:, :, 0, 0] @ reduced + outer_bias) / 6 + 0.5, 0, 1)
                made = made * gate[:, None, None].astype(np.float32)
            else:
                made = self._layer(made, part, held)
        return made + x if layer.residual else made


_SQUEEZE = ("reduce.weight", "reduce.bias", "expand.weight", "expand.bias")


def member_shapes(members: int = MEMBERS) -> dict[str, tuple[int, ...]]:
    """Every tensor of an ensemble with its shape."""
    found: dict[str, tuple[int, ...]] = {}
    for at in range(members):
        for layer in member():
            for part in parts(layer):
                found |= {f"members.{at}.{name}": shape for name, shape in part.tensors()}
    return found


def tensor_shapes(net: SplitNet) -> dict[str, tuple[int, ...]]:
    """Every tensor of a split network with its shape: members, decoder, clips and teacher."""
    found = member_shapes(net.members)
    for unit in net.decoder():
        at, wide = f"decoder.{unit.name}", (unit.outputs,)
        found[f"{at}.conv.weight"] = (unit.outputs, unit.inputs, unit.kernel, unit.kernel)
        found |= {f"{at}.norm.weight": wide, f"{at}.norm.bias": wide}
        found |= {f"{at}.norm.{part}": (net.members * BITS, *wide) for part in ("means", "variances")}
    found["clips"] = (BITS,)
    if net.detector is not None:
        return found | {PREFIX + name: shape for name, shape in net.detector.shapes.items()}
    for name, layers in net.teacher().items():
        if name != "neck" or net.task == "detect":
            found |= {
                one: shape for layer in layers for part in parts(layer) for one, shape in part.tensors()
            }
    final = net.final()
    return found | {"final.weight": (final.outputs, final.inputs, 1, 1), "final.bias": (final.outputs,)}


def device_tensors(members: int) -> tuple[str, ...]:
    """The names of the tensors that a device needs."""
    return (*member_shapes(members), "clips")


def parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers they hold."""
    return sum(math.prod(shape) for shape in shapes.values())


def levels_of(tensors: Mapping[str, Any]) -> tuple[float, ...]:
    """The learned clips for 1 to 4 bits."""
    return tuple(float(value) for value in np.asarray(tensors["clips"], np.float64))
