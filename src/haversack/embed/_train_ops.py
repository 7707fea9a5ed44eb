"""Operations of training that only the compiler to C has: another loss, numbers of another width."""

from __future__ import annotations

from dataclasses import dataclass, replace

from haversack.models.graph._gradients import LABEL, LOSS, CrossEntropy, GradInput
from haversack.models.graph._ir import Graph, Op, Tensor
from haversack.models.graph.autodiff import Builder, gradient_name


@dataclass(frozen=True)
class MeanSquare(CrossEntropy):
    """The mean of squares of what is missing to a target in the shape of x, and its gradient."""


@dataclass(frozen=True)
class Cast(Op):
    """The nearest numbers of y's type."""

    READS = ("x",)
    x: str
    y: str


def with_square(graph: Graph) -> Graph:
    """`graph`, whose one output is f32, with a target of its shape as an input and the loss as an output."""
    (y,) = graph.outputs
    if graph.tensors[y].dtype != "f32":
        raise ValueError("a loss needs an output in f32")
    builder = Builder(replace(graph, outputs=(y,)))
    builder.tensors[LABEL] = Tensor(LABEL, graph.tensors[y].shape, "f32")
    builder.tensors[LOSS] = Tensor(LOSS, (), "f32")
    gradient = builder.like(y)
    builder.ops.append(MeanSquare(y, LABEL, LOSS, gradient))
    return builder.graph(graph, (y, LOSS), (*graph.inputs, LABEL))


def in_kind(graph: Graph, kind: str, wide: frozenset[str] = frozenset()) -> Graph:
    """The step `graph` with every f32 tensor in `kind` but the loss, the target, tables, the input and
    `wide`; Cast stands where an operation reads a tensor of the other width."""
    if kind == "f32":
        return graph
    tables = {name for op in graph.ops if (name := getattr(op, "factors", None)) is not None}
    kept = {LABEL, LOSS, *graph.inputs, *tables, *wide}
    tensors = {
        name: tensor if tensor.dtype != "f32" or name in kept else replace(tensor, dtype=kind)
        for name, tensor in graph.tensors.items()
    }
    ops: list[Op] = []
    made: dict[tuple[str, str], str] = {}
    for op in graph.ops:
        goal = _width(op, tensors)
        back: Cast | None = None
        if isinstance(op, GradInput) and tensors[op.y].dtype != goal:
            through = f"{goal}:{op.y}"
            tensors[through] = replace(tensors[op.y], name=through, dtype=goal)
            back, op = Cast(through, op.y), replace(op, y=through)
        names: dict[str, str] = {}
        for name in op.reads:
            if name in tables or tensors[name].dtype == goal or tensors[name].dtype not in ("f32", kind):
                continue
            if name in graph.constants:
                raise ValueError(f"{name} is of another width than what it works on")
            if (name, goal) not in made:
                cast = f"{goal}:{name}"
                tensors[cast] = replace(tensors[name], name=cast, dtype=goal)
                made[name, goal] = cast
                ops.append(Cast(name, cast))
            names[name] = made[name, goal]
        ops += [_renamed_reads(op, names), *([back] if back is not None else [])]
    return replace(graph, ops=tuple(ops), tensors=tensors)


def _width(op: Op, tensors: dict[str, Tensor]) -> str:
    """The type that an operation computes in: that of what it writes, or of what learns."""
    if isinstance(op, CrossEntropy):
        return tensors[op.x].dtype
    if isinstance(op, GradInput):
        return tensors[op.weight].dtype
    name = op.writes[0] if op.writes else op.parameter  # type: ignore[attr-defined]
    return tensors[name].dtype


def _renamed_reads(op: Op, names: dict[str, str]) -> Op:
    if not names:
        return op
    changed = {
        each: names[name] for each in op.READS if (name := getattr(op, each)) is not None and name in names
    }
    return replace(op, **changed)


def wide_tensors(graph: Graph, layers: frozenset[str]) -> frozenset[str]:
    """What stays in 32 bits where `layers` (names of weights) do: weight, bias, output, gradients of sums."""
    found: set[str] = set()
    for op in graph.linears():
        if op.weight in layers:
            found |= {*op.reads[1:], op.y, gradient_name(op.y), gradient_name(f"sums of {op.y}")}
    return frozenset(name for name in found if name in graph.tensors)
