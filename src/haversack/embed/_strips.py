"""Whether a network that is too large fits when its first layers run strip by strip."""

from __future__ import annotations

from dataclasses import dataclass

from haversack.embed._variants import planned
from haversack.models.graph._ir import Graph
from haversack.models.graph.plan import products
from haversack.models.graph.strips import COUNTS, cuts, in_strips


@dataclass(frozen=True)
class Strips:
    """The first `operations` run in `count` strips, with `extra` products more than without."""

    operations: int
    count: int
    extra: int


def fitted(graph: Graph, room: float) -> tuple[Graph, Strips] | None:
    """The graph in strips whose arena is within `room` bytes at the least extra products; None where no
    strips do."""
    plain = products(graph)["forward"]
    found: list[tuple[int, Graph, Strips]] = []
    for stage in cuts(graph):
        rows = graph.tensors[graph.ops[stage - 1].writes[0]].shape[0]
        for count in COUNTS:
            if count > rows:
                break
            candidate = in_strips(graph, stage, count)
            if planned(candidate, {}).nbytes <= room:
                extra = products(candidate)["forward"] - plain
                found.append((extra, candidate, Strips(stage, count, extra)))
                break  # more strips share more rows
    if not found:
        return None
    _, made, strips = min(found, key=lambda each: each[0])
    return made, strips
