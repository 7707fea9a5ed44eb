"""int8-qas: a network learns in its own 8-bit integers, its gradients scaled for them.

Paper: Lin, Zhu, Chen, Wang, Gan and Han, "On-Device Training Under 256KB Memory" (arXiv 2206.15472, 2022),
quantization-aware scaling.
What is here: a weight is stored as W / s (s: its output's scale), so the gradient of the stored number is s
times that of the weight while the number is 1/s times as large: a step that suits the weights is too small
for the numbers by s^2. Hence

    g <- g / s_w^2             for weights,
    g <- g / (s_x s_w)^2       for biases, whose scale is s_x s_w,

before the step; the float classifier is left as it is. `scaling=off` is the same without it, the baseline.
`latent=int8` stores each step's result rounded, as a device does; `latent=float` keeps it finer and rounds in
every pass, as the reference code does. `gradients=int8` rounds gradients of sums and of weights to 8 bits, a
scale for each output.
What we changed: outputs with s_w < 1e-7 (dead channels of real checkpoints have 4e-9) do not learn
[inferred].
Cost: one product for each gradient; latent=float keeps 4 bytes a number that learns.
Limits: networks that are graphs of integers (kinds mcu and litert).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.models.graph._ir import Graph
from haversack.train._network import Network, Slice
from haversack.train._slots import Learned

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
DEAD = 1e-7
"""Scales of weights below this are those of channels that give nothing."""


def weight_factors(scales: F64) -> F64:
    """1 / s_w^2 for each output, 0 for dead ones."""
    live = scales >= DEAD
    return np.where(live, 1.0 / np.square(np.where(live, scales, 1.0)), 0.0)


def bias_factors(scales: F64, x_scale: float) -> F64:
    """1 / (s_x s_w)^2 for each output, 0 for dead ones."""
    return weight_factors(scales) / x_scale**2


def factors_of(graph: Graph) -> dict[str, tuple[F64, int]]:
    """Parameter -> what its gradient is multiplied by, and the dimension that this goes along: for every
    weight and bias that is stored in integers."""
    found: dict[str, tuple[F64, int]] = {}
    for op in graph.linears():
        weight, x = graph.tensors[op.weight], graph.tensors[op.x].quantization
        codes = weight.quantization
        if codes is None or x is None or weight.dtype != "int8":
            continue
        axis = codes.axis if codes.axis is not None else 0
        scales = np.broadcast_to(codes.array(), weight.shape[axis])
        found[op.weight] = weight_factors(scales), axis
        if op.bias is not None:
            found[op.bias] = bias_factors(scales, x.scale), 0
    return found


def along(factors: F64, axis: int, gradient: Array, part: Slice | None) -> F64:
    """`factors` so that they multiply `gradient` (of `part` of a tensor)."""
    if part is not None and part.axis == axis:
        factors = factors[np.array(part.indices, np.intp)]
    return factors.reshape([-1 if each == axis else 1 for each in range(gradient.ndim)])


@runtime_checkable
class IntegerNetwork(Protocol):
    """A network that is a graph of integers."""

    graph: Graph

    def learn_in(self, latent: str, gradients: str) -> None:
        """Keep the tensors in floats from now on or not, and round gradients or not."""

    def settle(self) -> None:
        """Back to integers."""


@dataclass(frozen=True)
class Int8Qas(Method):
    name = "int8-qas"
    stage = "train"
    slot = "precision"
    paper = "Lin et al., On-Device Training Under 256KB Memory (2022)"
    summary = "8-bit integers learn in place, their gradients divided by the squares of their scales."
    system = 23

    exactness: ClassVar[int] = 1

    scaling: str = parameter("on", allowed=("on", "off"), help="quantization-aware scaling")
    latent: str = parameter("int8", allowed=("int8", "float"), help="what steps are stored in")
    gradients: str = parameter("f32", allowed=("f32", "int8"), help="numbers of gradients")

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Precision."""
        return ("int8-qas",) if isinstance(network, IntegerNetwork) and factors_of(network.graph) else ()

    def begin(self, network: Network, learned: Learned) -> QasNumbers:
        """See Precision."""
        if not isinstance(network, IntegerNetwork) or not factors_of(network.graph):
            raise UserError(
                f"int8-qas needs a network of 8-bit integers (.pkl, .tflite), and {network.name} is none; "
                "use --precision f32.",
                field="precision",
                given=str(self),
                nearest="f32",
            )
        network.learn_in(self.latent, self.gradients)
        return QasNumbers(network, learned, self.scaling == "on")


class QasNumbers:
    """See train/_slots.py, Numbers."""

    def __init__(self, network: IntegerNetwork, learned: Learned, scaling: bool) -> None:
        self.network, self.wanted = network, learned.wanted
        self.factors = factors_of(network.graph)
        self.scaling = scaling

    def scaled(self, gradients: Mapping[str, F32]) -> dict[str, F32]:
        """See Numbers."""
        found = {}
        for name, gradient in gradients.items():
            if self.scaling and name in self.factors:
                factors, axis = self.factors[name]
                scaled = gradient * along(factors, axis, gradient, self.wanted.get(name))
                found[name] = scaled.astype(np.float32)
            else:
                found[name] = gradient
        return found

    def store(self, name: str, array: Array, values: F32, part: Slice | None) -> None:
        """See Numbers. Weights stay within 127 on both sides."""
        new: Array = values
        if array.dtype == np.int8:
            new = np.clip(np.rint(values), -127, 127).astype(np.int8)
        elif array.dtype == np.int32:
            limit = float((1 << 31) - 1)
            new = np.clip(np.rint(values.astype(np.float64)), -limit, limit).astype(np.int32)
        if part is None:
            array[...] = new
        else:
            part.put(array, new)

    def finish(self) -> None:
        """See Numbers."""
        self.network.settle()
