"""ONNX' recurrent layers: gates in ONNX' order become those of the graph's layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.formats.onnx import OnnxNode
from haversack.models.graph._onnx_making import Held, Making
from haversack.models.graph.series import Recurrent

Array = npt.NDArray[Any]

CELLS = {"GRU": ("gru", 3, 2), "LSTM": ("lstm", 4, 3), "RNN": ("simple_rnn", 1, 1)}
"""Our cell, its gates, the functions that ONNX names for it."""
USUAL = {"GRU": ["sigmoid", "tanh"], "LSTM": ["sigmoid", "tanh", "tanh"], "RNN": ["tanh"]}
IOFC = (0, 2, 3, 1)
"""ONNX' place of the graph's gates input, forget, candidate, output."""


def recurrent(made: Making, node: OnnxNode) -> None:
    """GRU, LSTM and RNN over [steps, 1, features]; Y is [steps, 1, 1, units], Y_h [1, 1, units]."""
    cell, gates, functions = CELLS[node.kind]
    value = made.read(node)
    kernel, states = made.needed(node, 1, "kernel"), made.needed(node, 2, "recurrent kernel")
    held = node.attributes
    units = int(held.get("hidden_size", kernel.shape[1] // gates))
    if held.get("direction", "forward") != "forward" or len(kernel) != 1:
        raise ValueError(f"the direction {held.get('direction')}; forward is supported")
    if int(held.get("layout", 0)) or held.get("clip") or int(held.get("input_forget", 0)):
        raise ValueError("layout, clip or input_forget, which are not supported")
    if node.given(4) is not None or node.given(7) is not None:
        raise ValueError("lengths of sequences or peepholes, which are not supported")
    named = [str(each).lower() for each in held.get("activations") or USUAL[node.kind]]
    if len(named) != functions or (cell == "lstm" and named[1] != named[2]):
        raise ValueError(f"the functions {named}")
    gate, activation = (named[0], named[1]) if functions > 1 else ("sigmoid", named[0])
    if {gate, activation} - {"sigmoid", "tanh", "relu"}:
        raise ValueError(f"the functions {named}; sigmoid, tanh and relu are supported")
    if len(value.shape) != 3 or value.shape[1] != 1:
        raise ValueError(f"an input of the shape {value.shape}; [steps, 1, features] is supported")
    steps, _, features = value.shape
    if kernel.shape != (1, gates * units, features) or states.shape != (1, gates * units, units):
        raise ValueError(f"kernels of the shapes {kernel.shape} and {states.shape} for {features} features")
    bias = made.fixed(node, 3, "bias")
    both = np.zeros((2, gates * units), np.float32) if bias is None else bias.reshape(2, gates * units)
    after = cell == "gru" and bool(int(held.get("linear_before_reset", 0)))
    layer = made.fresh(node.kind)
    carry = [_carried(made, node, place) for place in range(5, 7 if cell == "lstm" else 6)]
    if any(carry) != all(carry):
        raise ValueError("one of its states is an input, the other is not")
    shown = [at for at, name in enumerate(node.outputs) if name and made.uses[name]]
    plain = [at for at in shown if node.outputs[at] not in made.states.values()]
    if 2 in plain or (0 in plain and 1 in plain and steps > 1):
        raise ValueError("more than one of its outputs is read; Y, or Y_h, is supported")
    sequences = 0 in plain and steps > 1
    x = made.laid(value, (0, 1, 2), (steps, features))
    y = made.tensor(f"{layer}.y", (steps, units) if sequences else (units,))
    made.add(
        Recurrent(
            x,
            made.constant(f"{layer}.kernel", _gates(kernel[0], gates).T),
            made.constant(f"{layer}.recurrent", _gates(states[0], gates).T),
            made.constant(f"{layer}.bias", _gates(both.T, gates).T if after else _gates(both.sum(0), gates)),
            y,
            cell,
            activation,
            gate,
            all(carry),
            sequences,
        )
    )
    shapes = {0: (steps, 1, 1, units), 1: (1, 1, units)}
    for at in plain:
        made.write(node, Held(y, shapes[at], tuple(range(len(shapes[at])))), at)


def _carried(made: Making, node: OnnxNode, place: int) -> bool:
    """Whether a first state is what the pass before left. Raises ValueError for one that is not 0."""
    name = node.given(place)
    if name is None:
        return False
    if name in made.states:
        return True
    first = made.fixed(node, place, "first state")
    if first is None or first.any():
        raise ValueError("a first state other than 0")
    return False


def _gates(rows: Array, gates: int) -> Array:
    """[gates * units, ...] in the graph's order of gates."""
    if gates != 4:
        return rows
    parts = rows.reshape(4, len(rows) // 4, *rows.shape[1:])
    return np.ascontiguousarray(parts[list(IOFC)]).reshape(rows.shape)
