"""A mixture of experts as ONNX nodes: each expert computes the tokens that chose it, and no others."""

from __future__ import annotations

from haversack.core.errors import UserError
from haversack.models._architecture import Mixture
from haversack.run.export._onnx_graph import Graph
from haversack.run.export._onnx_layers import Step, feed_forward


def mixture(graph: Graph, step: Step, layer: Mixture, x: str, index: int) -> str:
    """What the chosen experts make of x [n, width] by their shares, and the shared expert: [n, width]."""
    chosen, shares = _choice(graph, layer, step.entry if layer.tap == "residual" else x)
    total = graph.add("ConstantOfShape", graph.add("Shape", x))
    for number, expert in enumerate(layer.experts):
        mine = graph.add("Equal", chosen, graph.constant(number, "int64"))
        places = graph.add("Transpose", graph.add("NonZero", mine), perm=[1, 0])  # (token, place) of each
        tokens = graph.slice(places, 0, 1)
        share = graph.add("Unsqueeze", graph.add("GatherND", shares, places), graph.whole(-1))
        read = graph.add("GatherND", x, tokens)
        made = feed_forward(graph, step, expert, read, index, share)
        total = graph.add("ScatterND", total, tokens, made, reduction="add")
    if layer.shared is not None:
        gate = layer.shared_gate
        part = None if gate is None else graph.add("Sigmoid", graph.linear(x, gate))
        total = graph.add("Add", total, feed_forward(graph, step, layer.shared, x, index, part))
    return total


def _choice(graph: Graph, layer: Mixture, x: str) -> tuple[str, str]:
    """The experts i64 [n, top] that a router takes for x [n, width], and their shares f32 [n, top]."""
    scored = ratings = graph.linear(x, layer.router)
    if layer.scored == "all":
        scored = _scores(graph, layer, ratings)
    best, chosen = graph.several("TopK", scored, graph.whole(layer.top), axis=-1, count=2)
    shares = best if layer.scored == "all" else _scores(graph, layer, best)
    if layer.normalized:
        shares = graph.add("Div", shares, graph.add("ReduceSum", shares, graph.whole(-1), keepdims=1))
    return chosen, shares


def _scores(graph: Graph, layer: Mixture, ratings: str) -> str:
    if layer.scoring == "softmax":
        return graph.add("Softmax", ratings, axis=-1)
    if layer.scoring == "sigmoid":
        return graph.add("Sigmoid", ratings)
    raise UserError(
        f"the scores {layer.scoring!r} of a router have no form in ONNX here.",
        field="scoring",
        given=layer.scoring,
    )
