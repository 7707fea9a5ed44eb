"""Sparse updates: biases of the last layers, and some channels of some layers' weights.

Paper: Lin, Zhu, Chen, Wang, Gan and Han, "On-Device Training Under 256KB Memory" (arXiv 2206.15472, 2022).
What is here: a scheme names how many of the last convolutions learn their biases, and which of these learn
weights, each for a share of its input channels (a depthwise one: of its channels); the rest, and all below,
has no way back. Channels are those with the largest norm of their slice. Memory of one example is counted as
published, in bits: 8 for each input of the classifier; for each convolution of the depth a bit an output and
32 a bias; for weights that learn 8 each and 8 for each number of the kept channels' input. `kib` finds the
scheme with the largest sum of contributions within a budget, exactly; the paper's evolutionary search is
there to compare with. Contributions are measured by training (`analysed`) or, where nothing was measured, the
ones that the paper found in general.
What we changed: the search is exact, layers from last to first with all choices that no cheaper one equals.
Cost: counted above; the real plan of memory is that of models/graph/plan.py.
Limits: graphs of convolutions in integers (kinds mcu and litert); the count leaves gradients and the way
forward out, and counts a saved input's mask twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.models.graph._ir import Graph
from haversack.train._network import Network, Slice, head_of
from haversack.train._slots import Learned
from haversack.train.parameters._sparse_memory import (
    Conv,
    MemoryReport,
    Scheme,
    convolutions,
    features_of,
    kept_channels,
    memory_report,
)
from haversack.train.parameters._sparse_search import (
    Contributions,
    analysed,
    best_scheme,
    evolved_scheme,
    expected,
)

__all__ = [
    "Contributions",
    "Conv",
    "MemoryReport",
    "Scheme",
    "Sparse",
    "analysed",
    "best_scheme",
    "convolutions",
    "evolved_scheme",
    "expected",
    "features_of",
    "learned_channels",
    "memory_report",
]

OFFERED_KIB = (400, 100, 50)


def learned_channels(
    graph: Graph, scheme: Scheme, choice: str = "magnitude+", seed: int = 0
) -> dict[str, tuple[int, ...] | None]:
    """Tensor -> channels of its last dimension that learn, None for all, in the order of the pass; the
    classifier left out. Raises UserError for what is no scheme of this graph."""
    convs = convolutions(graph)
    scheme.check(len(convs))
    ratios = dict(zip(scheme.layers, scheme.ratios, strict=True))
    found: dict[str, tuple[int, ...] | None] = {}
    for layer in range(len(convs) - scheme.biases, len(convs)):
        conv = convs[layer]
        count = conv.kept(ratios.get(layer, 0.0))
        if count:
            weight = graph.constants[conv.weight]
            found[conv.weight] = (
                None if count == conv.channels else kept_channels(weight, count, choice, seed)
            )
        found[conv.bias] = None
    return found


@dataclass(frozen=True)
class Sparse(Method):
    name = "sparse"
    stage = "train"
    slot = "parameters"
    paper = "Lin et al., On-Device Training Under 256KB Memory (2022)"
    summary = "Biases of the last layers and some channels of some layers' weights."
    system = 23

    kib: float = parameter(100.0, help="memory of one example as published, where no scheme is given")
    biases: int | None = parameter(None, help="how many of the last convolutions learn their biases")
    layers: str = parameter("", help="convolutions whose weights learn: 21-24-27")
    ratios: str = parameter("", help="the share of channels of each: 1-0.5-0.125")
    channels: str = parameter(
        "magnitude+", allowed=("magnitude+", "magnitude-", "random"), help="which channels learn"
    )
    contributions: str = parameter("", help="a JSON file of measured contributions")
    search: str = parameter(
        "exact", allowed=("exact", "evolution"), help="how a scheme for a budget is found"
    )

    def scheme(self, graph: Graph, seed: int = 0) -> Scheme:
        """The scheme asked for, or the best within `kib`. Raises UserError for what is no scheme."""
        convs = convolutions(graph)
        if self.biases is not None:
            layers = _numbers("layers", self.layers, int)
            ratios = _numbers("ratios", self.ratios, float)
            return Scheme(self.biases, layers, ratios or (1.0,) * len(layers)).check(len(convs))
        if self.layers or self.ratios:
            raise UserError("layers learn only where their biases do; give biases=N as well.", field="biases")
        gains = Contributions.read(Path(self.contributions)) if self.contributions else expected(convs)
        if self.search == "evolution":
            return evolved_scheme(convs, features_of(graph), gains, self.kib, seed)
        return best_scheme(convs, features_of(graph), gains, self.kib)

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Parameters."""
        graph = getattr(network, "graph", None)
        if not isinstance(graph, Graph) or not convolutions(graph):
            return ()
        return tuple(f"sparse:kib={kib}" for kib in OFFERED_KIB)

    def prepare(self, network: Network, seed: int) -> Learned:
        """See Parameters."""
        graph = getattr(network, "graph", None)
        if not isinstance(graph, Graph) or not convolutions(graph):
            raise UserError(
                f"sparse updates need a graph of convolutions (an int8 network: .pkl, .tflite), and "
                f"{network.name} is none; use --parameters bias.",
                field="parameters",
                given=str(self),
                nearest="bias",
            )
        chosen = learned_channels(graph, self.scheme(graph, seed), self.channels, seed)
        wanted: dict[str, Slice | None] = {}
        for name, array in network.tensors().items():
            if name in chosen:
                channels = chosen[name]
                wanted[name] = None if channels is None else Slice(array.ndim - 1, channels)
            elif name in head_of(network):
                wanted[name] = None
        return Learned(wanted)


def _numbers(field: str, text: str, kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(each) for each in text.split("-")) if text else ()
    except ValueError:
        raise UserError(
            f"{field}={text} are no numbers with - between them (21-24-27).", field=field, given=text
        ) from None
