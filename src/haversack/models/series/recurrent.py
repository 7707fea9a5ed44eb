"""Recurrent layers one step at a time, as Keras defines them: SimpleRNN, LSTM, GRU; and the dense layer.

    GRU, gates in the order z, r, h:
        z = s(Wz x + Uz h + bz)          r = s(Wr x + Ur h + br)
        reset_after:  c = f(Wh x + bh_in + r * (Uh h + bh_rec))
        otherwise:    c = f(Wh x + Uh (r * h) + bh)
        h' = z * h + (1 - z) * c
    LSTM, gates in the order i, f, c, o:
        c' = s(i) * f(c~) + s(f) * c     h' = s(o) * f(c')

Layers are records of arrays; their functions take a batch in the first axis and any float type, in which they
compute. A GRU has two rows of biases exactly when it is `reset_after`. `tangent` is the derivative of one
step along given directions (forward mode), which predictive control can take in place of finite differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.models.series.activations import SLOPES, activate

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Dense:
    """y = f(x W + b): `kernel` (inputs, units), `bias` (units)."""

    kernel: Array
    bias: Array
    activation: str = "linear"

    @property
    def units(self) -> int:
        return int(self.kernel.shape[1])


@dataclass(frozen=True)
class SimpleRnn:
    """h' = f(x W + h U + b): `kernel` (inputs, units), `recurrent` (units, units), `bias` (units)."""

    kernel: Array
    recurrent: Array
    bias: Array
    activation: str = "tanh"

    @property
    def units(self) -> int:
        return int(self.recurrent.shape[0])


@dataclass(frozen=True)
class Lstm:
    """`kernel` (inputs, 4 units), `recurrent` (units, 4 units), `bias` (4 units); gates i, f, c, o."""

    kernel: Array
    recurrent: Array
    bias: Array
    activation: str = "tanh"
    gate: str = "sigmoid"

    @property
    def units(self) -> int:
        return int(self.recurrent.shape[0])


@dataclass(frozen=True)
class Gru:
    """`kernel` (inputs, 3 units), `recurrent` (units, 3 units), `bias` (2, 3 units) for reset_after, the row
    of the inputs first, else (3 units); gates z, r, h."""

    kernel: Array
    recurrent: Array
    bias: Array
    activation: str = "tanh"
    gate: str = "sigmoid"

    @property
    def units(self) -> int:
        return int(self.recurrent.shape[0])

    @property
    def reset_after(self) -> bool:
        return self.bias.ndim == 2


Layer = Dense | SimpleRnn | Lstm | Gru
State = tuple[Array, ...]


def dense(layer: Dense, x: Array) -> Array:
    """(batch, inputs) to (batch, units)."""
    return activate(layer.activation, x @ layer.kernel + layer.bias)


def simple_rnn_step(layer: SimpleRnn, x: Array, h: Array) -> Array:
    """The next hidden state, (batch, units)."""
    return activate(layer.activation, x @ layer.kernel + h @ layer.recurrent + layer.bias)


def lstm_step(layer: Lstm, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """The next hidden and cell states, each (batch, units)."""
    i, f, new, o = np.split(x @ layer.kernel + h @ layer.recurrent + layer.bias, 4, axis=-1)
    kept = activate(layer.gate, f) * c + activate(layer.gate, i) * activate(layer.activation, new)
    return activate(layer.gate, o) * activate(layer.activation, kept), kept


def gru_step(layer: Gru, x: Array, h: Array) -> Array:
    """The next hidden state, (batch, units)."""
    z, _, _, _, c = gru_gates(layer, x, h)
    return z * h + (1 - z) * c


def gru_gates(layer: Gru, x: Array, h: Array) -> tuple[Array, Array, Array, Array, Array]:
    """z, r, what the recurrent kernel makes of the candidate's state, what it is made from, and the
    candidate."""
    units = layer.units
    inner, outer = (layer.bias[0], layer.bias[1]) if layer.reset_after else (layer.bias, None)
    from_x = x @ layer.kernel + inner
    from_h = h @ layer.recurrent[:, : 2 * units]
    if outer is not None:
        from_h = from_h + outer[: 2 * units]
    z = activate(layer.gate, from_x[..., :units] + from_h[..., :units])
    r = activate(layer.gate, from_x[..., units : 2 * units] + from_h[..., units:])
    seen = h if outer is not None else r * h
    product = seen @ layer.recurrent[:, 2 * units :]
    if outer is not None:
        product = product + outer[2 * units :]
    c = activate(layer.activation, from_x[..., 2 * units :] + (r * product if outer is not None else product))
    return z, r, product, seen, c


def start(layers: Sequence[Layer], batch: int = 1, dtype: Any = np.float64) -> State:
    """Zero states of all recurrent layers, in order; an LSTM has two."""
    state: list[Array] = []
    for layer in layers:
        if not isinstance(layer, Dense):
            zeros = np.zeros((batch, layer.units), dtype)
            state += [zeros, zeros.copy()] if isinstance(layer, Lstm) else [zeros]
    return tuple(state)


def step(layers: Sequence[Layer], x: Array, state: State) -> tuple[Array, State]:
    """One step of a stack: its output (batch, units of the last layer) and its next state; `state` stays as
    it is, so that a probe restores by forgetting."""
    left, after = list(state), []
    for layer in layers:
        if isinstance(layer, Dense):
            x = dense(layer, x)
        elif isinstance(layer, Lstm):
            x, c = lstm_step(layer, x, left.pop(0), left.pop(0))
            after += [x, c]
        else:
            h = left.pop(0)
            x = gru_step(layer, x, h) if isinstance(layer, Gru) else simple_rnn_step(layer, x, h)
            after.append(x)
    return x, tuple(after)


def tangent(
    layers: Sequence[Layer], x: Array, state: State, dx: Array, dstate: State
) -> tuple[Array, State, Array, State]:
    """`step` and its derivative along (dx, dstate), one direction a row: output, state, and both derivatives.

    For stacks of dense layers and GRUs with activations whose slopes are known; UserError otherwise.
    """
    left, dleft = list(state), list(dstate)
    after: list[Array] = []
    dafter: list[Array] = []
    for layer in layers:
        if isinstance(layer, Dense):
            x, dx = _dense_tangent(layer, x, dx)
        elif isinstance(layer, Gru):
            x, dx = _gru_tangent(layer, x, left.pop(0), dx, dleft.pop(0))
            after.append(x)
            dafter.append(dx)
        else:
            raise UserError(
                f"{type(layer).__name__} has no derivative here (dense layers and GRUs have); use finite "
                f"differences.",
                field="derivative",
                given=type(layer).__name__,
            )
    return x, tuple(after), dx, tuple(dafter)


def _slope(name: str, y: Array) -> Array:
    if name not in SLOPES:
        raise UserError(
            f"the slope of {name} is not known (known: {', '.join(SLOPES)}); use finite differences.",
            field="activation",
            given=name,
        )
    return SLOPES[name](y)


def _dense_tangent(layer: Dense, x: Array, dx: Array) -> tuple[Array, Array]:
    y = dense(layer, x)
    return y, _slope(layer.activation, y) * (dx @ layer.kernel)


def _gru_tangent(layer: Gru, x: Array, h: Array, dx: Array, dh: Array) -> tuple[Array, Array]:
    units = layer.units
    z, r, product, _, c = gru_gates(layer, x, h)
    from_x = dx @ layer.kernel
    from_h = dh @ layer.recurrent[:, : 2 * units]
    dz = _slope(layer.gate, z) * (from_x[..., :units] + from_h[..., :units])
    dr = _slope(layer.gate, r) * (from_x[..., units : 2 * units] + from_h[..., units:])
    last = layer.recurrent[:, 2 * units :]
    inside = dr * product + r * (dh @ last) if layer.reset_after else (dr * h + r * dh) @ last
    dc = _slope(layer.activation, c) * (from_x[..., 2 * units :] + inside)
    return z * h + (1 - z) * c, dz * (h - c) + z * dh + (1 - z) * dc


def parameter_count(layers: Sequence[Layer]) -> int:
    """Numbers that the layers store."""
    return sum(array.size for layer in layers for array in arrays(layer).values())


def arrays(layer: Layer) -> dict[str, Array]:
    """The arrays of a layer by name."""
    return {name: value for name, value in vars(layer).items() if isinstance(value, np.ndarray)}


def scaled_inputs(layer: Layer, scale: Array, offset: Array) -> Layer:
    """The layer that makes of x what `layer` makes of scale * x + offset: a normalisation folded away."""
    kernel = layer.kernel * scale[:, None]
    shift = offset @ layer.kernel
    bias = layer.bias + (np.stack([shift, np.zeros_like(shift)]) if layer.bias.ndim == 2 else shift)
    return replace(layer, kernel=kernel, bias=bias)
