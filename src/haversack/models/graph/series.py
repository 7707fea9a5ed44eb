"""Operations of networks over series: recurrent layers, activations by name.

They stand beside those of _ir.py, with numbers in floats. A series is [steps, features]; a convolution along
it is a Conv2d of height 1 over [1, steps, features]. `carry`: the hidden state outlives a pass, as on a
device that is fed a step at a time; otherwise every pass begins with zeros, as Keras does unless a layer is
stateful.

`Runner` runs graphs that have them, in any float type, the states of all examples side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.models.graph._execute import KERNELS, Machine
from haversack.models.graph._ir import Graph, Op
from haversack.models.series.activations import activate
from haversack.models.series.recurrent import Dense, Gru, Layer, Lstm, SimpleRnn, State, start, step

Array = npt.NDArray[Any]

CELLS = ("gru", "lstm", "simple_rnn")


@dataclass(frozen=True)
class Recurrent(Op):
    """A recurrent layer over [steps, features]: y is the last hidden state [units], or all [steps, units].

    Constants are Keras': `kernel` [features, gates units], `recurrent` [units, gates units], `bias`."""

    READS = ("x", "kernel", "recurrent", "bias")
    x: str
    kernel: str
    recurrent: str
    bias: str
    y: str
    cell: str
    activation: str = "tanh"
    gate: str = "sigmoid"
    carry: bool = False
    sequences: bool = False


@dataclass(frozen=True)
class Activation(Op):
    """The function `name` of each number; softmax over the last dimension."""

    READS = ("x",)
    IN_PLACE = "x"
    x: str
    y: str
    name: str


def layer_of(op: Recurrent, constants: Mapping[str, Array]) -> Layer:
    """The layer that an operation stands for."""
    kernel, recurrent, bias = (constants[name] for name in (op.kernel, op.recurrent, op.bias))
    if op.cell == "gru":
        return Gru(kernel, recurrent, bias, op.activation, op.gate)
    if op.cell == "lstm":
        return Lstm(kernel, recurrent, bias, op.activation, op.gate)
    return SimpleRnn(kernel, recurrent, bias, op.activation)


class Runner:
    """Runs a graph of floats with the operations of both files; states of layers that carry stay between
    runs."""

    def __init__(self, graph: Graph, dtype: Any = np.float64) -> None:
        self.graph, self.dtype = graph, dtype
        held = {
            name: values.astype(dtype) if values.dtype.kind == "f" else values
            for name, values in graph.constants.items()
        }
        self.machine = Machine(graph, parameters=held)
        self.reset()

    def reset(self) -> None:
        """Zero states."""
        self._states: dict[str, State] = {}

    def run(self, x: Array) -> Array:
        """The output for rows of inputs [rows, ...]."""
        values: dict[str, Any] = {self.graph.inputs[0]: x}
        for op in self.graph.ops:
            if isinstance(op, Recurrent):
                values[op.y] = self._recurrent(op, values[op.x])
            elif isinstance(op, Activation):
                values[op.y] = activate(op.name, values[op.x])
            else:
                KERNELS[type(op)](self.machine, op, values)
        found: Array = values[self.graph.outputs[0]]
        return found

    def _recurrent(self, op: Recurrent, x: Array) -> Array:
        layer = layer_of(op, self.machine.parameters)
        assert not isinstance(layer, Dense)
        state = self._states.get(op.y) if op.carry else None
        state = start((layer,), len(x), self.dtype) if state is None else state
        outs = []
        for at in range(x.shape[1]):
            y, state = step((layer,), x[:, at], state)
            outs.append(y)
        if op.carry:
            self._states[op.y] = state
        return np.stack(outs, axis=1) if op.sequences else outs[-1]
