"""The first layers of a network strip by strip: less memory where pictures are largest, more products.

Paper: MCUNetV2 (arXiv 2110.15352, 2021), patch-based inference: the memory-hungry stage runs on one part of
the picture after the other, and only its result is kept whole.
What is here: parts are strips of rows over the whole width. Of the stage's result each strip's rows are
asked for; every layer before gives the rows that its readers need of it, borders that windows share are
computed by both strips. Zeros stand only where the picture itself ends. The result is put together in place.
Sums are the same, so codes are the same to the bit.
What we changed: strips instead of squares, because rows lie together in memory; the whole input stays.
Cost: the shared rows again, once for each strip but one. Limits: a stage of windows, sums and bounds that
ends where a single tensor crosses, cut at the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from haversack.models.graph._ir import Add, AveragePool, Clamp, Conv2d, Graph, Op, Tensor
from haversack.models.graph._moves import Part, Put

SYSTEM = 23
COUNTS = (2, 3, 4, 6, 8, 12, 16)
Rows = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Rows of x that an operation reads for rows of y, and the zeros that it adds above and below."""

    rows: Rows
    above: int
    below: int


def window_of(graph: Graph, op: Op, wanted: Rows) -> Window:
    """What `op` reads for the rows `wanted` of its result."""
    first, last = wanted
    if not isinstance(op, Conv2d | AveragePool):
        return Window(wanted, 0, 0)
    if isinstance(op, AveragePool):
        kernel = op.size[0]
    else:
        shape = graph.tensors[op.weight].shape
        kernel = shape[0] if len(shape) == 3 else shape[1]
    stride, height = op.stride[0], graph.tensors[op.x].shape[0]
    start, stop = first * stride - op.pads[0][0], (last - 1) * stride - op.pads[0][0] + kernel
    return Window((max(start, 0), min(stop, height)), max(0, -start), max(0, stop - height))


def cuts(graph: Graph) -> Iterator[int]:
    """Counts of operations from the first on after which one picture alone goes on, all of them of kinds that
    work on strips."""
    live = set(graph.inputs)
    for number, op in enumerate(graph.ops):
        masked = getattr(op, "mask", None) is not None
        if not isinstance(op, Conv2d | AveragePool | Add | Clamp) or masked:
            return
        live |= set(op.writes)
        rest = graph.ops[number + 1 :]
        live = {name for name in live if any(name in later.reads for later in rest) or name in graph.outputs}
        y = graph.tensors[op.writes[0]]
        if live == {y.name} and len(y.shape) == 3 and y.shape[0] > 1:
            yield number + 1


def in_strips(graph: Graph, stage: int, count: int) -> Graph:
    """The same network, its first `stage` operations in `count` strips. Raises ValueError where the stage's
    result has fewer rows or the cut is none."""
    ops = graph.ops[:stage]
    goal = graph.tensors[ops[-1].writes[0]]
    if stage not in set(cuts(graph)) or not 1 < count <= goal.shape[0]:
        raise ValueError(f"{count} strips of {stage} operations")
    made = _Strips(graph, ops)
    whole: str | None = None
    for strip in range(count):
        rows = (goal.shape[0] * strip // count, goal.shape[0] * (strip + 1) // count)
        part = made.strip(strip, rows)
        name = goal.name if strip == count - 1 else f"{goal.name}.whole{strip}"
        made.tensors[name] = replace(goal, name=name)
        made.ops.append(Put(whole, part, name, rows[0]))
        whole = name
    kept = {name for op in (*made.ops, *graph.ops[stage:]) for name in (*op.reads, *op.writes)}
    tensors = {name: each for name, each in {**graph.tensors, **made.tensors}.items() if name in kept}
    return replace(graph, tensors=tensors, ops=(*made.ops, *graph.ops[stage:]))


class _Strips:
    def __init__(self, graph: Graph, stage: tuple[Op, ...]) -> None:
        self.graph, self.stage = graph, stage
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []

    def strip(self, number: int, rows: Rows) -> str:
        """Add the operations of one strip; the tensor with its rows of the stage's result."""
        goal = self.stage[-1].writes[0]
        wanted = {goal: rows}
        for op in reversed(self.stage):
            read = window_of(self.graph, op, wanted[op.writes[0]]).rows
            for name in self._pictures(op):
                low, high = wanted.get(name, read)
                wanted[name] = (min(low, read[0]), max(high, read[1]))
        names = {name: name for name in self.graph.inputs}
        starts = dict.fromkeys(self.graph.inputs, 0)
        for op in self.stage:
            y = op.writes[0]
            window = window_of(self.graph, op, wanted[y])
            renamed = {
                name: self._rows(names[name], starts[name], window.rows, f"{name}.{number}.{y}")
                for name in self._pictures(op)
            }
            names[y], starts[y] = f"{y}.{number}", wanted[y][0]
            self._tensor(names[y], y, wanted[y])
            changed: Any = op.renamed({**renamed, y: names[y]})
            if isinstance(op, Conv2d | AveragePool):
                changed = replace(changed, pads=((window.above, window.below), op.pads[1]))
            self.ops.append(changed)
        return names[goal]

    def _pictures(self, op: Op) -> list[str]:
        return [name for name in op.reads if name not in self.graph.constants]

    def _tensor(self, name: str, like: str, rows: Rows) -> None:
        source = self.graph.tensors[like]
        self.tensors[name] = replace(source, name=name, shape=(rows[1] - rows[0], *source.shape[1:]))

    def _rows(self, name: str, start: int, rows: Rows, goal: str) -> str:
        """The tensor that holds these rows alone of one that begins with row `start`."""
        held = self.tensors.get(name) or self.graph.tensors[name]
        if (start, start + held.shape[0]) == rows:
            return name
        self.tensors[goal] = replace(held, name=goal, shape=(rows[1] - rows[0], *held.shape[1:]))
        self.ops.append(Part(name, goal, rows[0] - start, rows[1] - rows[0]))
        return goal
