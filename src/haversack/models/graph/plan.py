"""A static schedule and a place in memory for every tensor: what a device needs to run or train a graph.

Source: Lin, Zhu, Chen, Wang, Gan and Han, "On-Device Training Under 256KB Memory" (arXiv 2206.15472, 2022),
the training engine; placing the largest first at the best gap is the usual greedy answer to this packing.
What is here: `fused` puts the gradient of a parameter and its update into one operation, which needs no room
for the gradient; `reordered` runs every update as soon as its gradient is there and nothing else reads the
parameter; `lifetimes` says from which operation to which a tensor is alive, results in place of an operand
that dies share its memory; `arena` gives each tensor an offset, the largest first, each in the smallest gap
among those that live at the same time; `faults` checks a plan anew, by comparing every pair.
Memory of one example: activations and masks of the way forward, what is kept for the way back, gradients in
f32. Parameters that learn lie in RAM beside the arena, all others in flash.
Limits: one arena of one address space; code is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from haversack.models.graph._gradients import (
    STEPS,
    BiasStep,
    GradBias,
    GradInput,
    GradWeight,
    Step,
    Update,
)
from haversack.models.graph._ir import (
    Conv2d,
    DepthwiseConv2d,
    FullyConnected,
    Graph,
    Op,
)

ALIGNMENT = 4
SMALL = 64


def fused(graph: Graph) -> Graph:
    """Gradients that only an update reads, and the update, as one operation at the update's place."""
    makers = {op.y: op for op in graph.ops if isinstance(op, GradWeight | GradBias)}
    ops: list[Op] = []
    for op in graph.ops:
        if isinstance(op, GradWeight | GradBias) and _only_updates(graph, op.y):
            continue
        maker = makers.get(op.gradient) if isinstance(op, Update) else None
        if isinstance(op, Update) and maker is not None and _only_updates(graph, op.gradient):
            if isinstance(maker, GradWeight):
                op = Step(maker, maker.x, maker.gradient, op.parameter, op.factors, op.channels)
            else:
                op = BiasStep(maker.x, op.parameter, op.factors)
        ops.append(op)
    return replace(graph, ops=tuple(ops))


def _only_updates(graph: Graph, name: str) -> bool:
    return name not in graph.outputs and all(isinstance(op, Update) for op in graph.readers(name))


def reordered(graph: Graph) -> Graph:
    """Every update at the first place where what it reads is written and nobody else still needs the
    parameter."""
    waiting = [op for op in graph.ops if isinstance(op, STEPS)]
    others = [op for op in graph.ops if not isinstance(op, STEPS)]
    written = {*graph.inputs, *graph.constants}
    to_read = {op.parameter: sum(op.parameter in other.reads for other in others) for op in waiting}
    ops: list[Op] = []

    def flush() -> None:
        for op in list(waiting):
            if not to_read[op.parameter] and written.issuperset(op.reads):
                ops.append(op)
                waiting.remove(op)

    for op in others:
        ops.append(op)
        written.update(op.writes)
        for name in op.reads:
            if name in to_read:
                to_read[name] -= 1
        flush()
    return replace(graph, ops=tuple(ops))


@dataclass(frozen=True)
class Life:
    """One piece of memory: alive from operation `first` to `last`, both included; `names` share it."""

    names: tuple[str, ...]
    nbytes: int
    first: int
    last: int

    def meets(self, other: Life) -> bool:
        """Whether both are alive at once."""
        return self.first <= other.last and other.first <= self.last


def lifetimes(graph: Graph, *, in_place: bool = True) -> list[Life]:
    """What has to lie in memory, and when: every tensor but constants. Inputs are there from the start,
    outputs to the end."""
    born: dict[str, int] = {name: 0 for name in graph.inputs}
    dies: dict[str, int] = dict.fromkeys(graph.inputs, 0)
    for number, op in enumerate(graph.ops):
        for name in op.writes:
            born[name] = dies[name] = number
        for name in op.reads:
            if name in born:
                dies[name] = number
    for name in graph.outputs:
        dies[name] = len(graph.ops) - 1
    head: dict[str, str] = {}
    if in_place:
        for number, op in enumerate(graph.ops):
            if op.IN_PLACE is None or getattr(op, op.IN_PLACE) is None:
                continue
            x, y = getattr(op, op.IN_PLACE), op.writes[0]
            fits = graph.tensors[x].nbytes == graph.tensors[y].nbytes
            if x in born and dies[x] == number and x not in graph.inputs and fits:
                head[y] = head.get(x, x)
    groups: dict[str, list[str]] = {}
    for name in born:
        groups.setdefault(head.get(name, name), []).append(name)
    return [
        Life(
            tuple(names),
            graph.tensors[names[0]].nbytes,
            min(born[name] for name in names),
            max(dies[name] for name in names),
        )
        for names in groups.values()
    ]


@dataclass(frozen=True)
class Arena:
    """Where each piece of memory lies. `nbytes`: the whole; `bound`: what lives at once at the most, which
    no plan can go below."""

    lives: tuple[Life, ...]
    offsets: tuple[int, ...]
    nbytes: int
    bound: int

    def places(self) -> dict[str, tuple[int, int]]:
        """Tensor -> offset, bytes."""
        return {
            name: (offset, life.nbytes)
            for life, offset in zip(self.lives, self.offsets, strict=True)
            for name in life.names
        }


def arena(lives: Sequence[Life]) -> Arena:
    """A place for each, in the smallest gap that fits: the best of a few orders, of which the first is by
    size and length of life and the others begin where most is alive at once."""
    count = max((life.last for life in lives), default=-1) + 1
    alive = [0] * count
    for life in lives:
        for number in range(life.first, life.last + 1):
            alive[number] += life.nbytes
    fullest = {id(life): max(alive[life.first : life.last + 1]) for life in lives}
    orders = (
        sorted(lives, key=lambda life: (-life.nbytes, life.first - life.last)),
        sorted(lives, key=lambda life: (life.first - life.last, -life.nbytes)),
        sorted(lives, key=lambda life: (-fullest[id(life)], -life.nbytes)),
        sorted(lives, key=lambda life: (-fullest[id(life)], life.first, -life.nbytes)),
        sorted(lives, key=lambda life: (-fullest[id(life)], life.first - life.last, -life.nbytes)),
        sorted(lives, key=lambda life: (life.nbytes <= SMALL, life.first, -life.nbytes)),
    )
    return min((_placed(order) for order in orders), key=lambda found: found.nbytes)


def _placed(lives: Sequence[Life]) -> Arena:
    offsets: list[int] = []
    for number, life in enumerate(lives):
        taken = sorted(
            (offsets[i], offsets[i] + _aligned(lives[i].nbytes))
            for i in range(number)
            if lives[i].meets(life)
        )
        offsets.append(_best_gap(taken, _aligned(life.nbytes)))
    ends = [offset + life.nbytes for offset, life in zip(offsets, lives, strict=True)]
    return Arena(tuple(lives), tuple(offsets), _aligned(max(ends, default=0)), lower_bound(lives))


def _best_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """The offset of the smallest gap of at least `size` between pieces that are taken, else behind them."""
    best, room, end = None, math.inf, 0
    for start, stop in taken:
        if size <= start - end < room:
            best, room = end, start - end
        end = max(end, stop)
    return end if best is None else best


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def lower_bound(lives: Sequence[Life]) -> int:
    """The most bytes that are alive at one operation."""
    return max(
        (
            sum(_aligned(life.nbytes) for life in lives if life.first <= number <= life.last)
            for number in {life.first for life in lives}
        ),
        default=0,
    )


def faults(graph: Graph, found: Arena) -> list[str]:
    """What is wrong with a plan, checked from the graph alone: tensors alive at once that share bytes, places
    outside the arena, tensors without a place. Empty for a plan that holds."""
    places = found.places()
    alive: dict[str, tuple[int, int]] = {name: (0, 0) for name in graph.inputs}
    for number, op in enumerate(graph.ops):
        for name in op.writes:
            alive[name] = (number, number)
        for name in op.reads:
            if name in alive:
                alive[name] = (alive[name][0], number)
    for name in graph.outputs:
        alive[name] = (alive[name][0], len(graph.ops) - 1)
    said = [f"{name} has no place" for name in alive if name not in places]
    names = [name for name in alive if name in places]
    for name in names:
        start, nbytes = places[name]
        if start < 0 or start + nbytes > found.nbytes or nbytes != graph.tensors[name].nbytes:
            said.append(f"{name} lies outside the arena")
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            (a, a_size), (b, b_size) = places[first], places[second]
            if a >= b + b_size or b >= a + a_size:
                continue
            (a_born, a_dies), (b_born, b_dies) = alive[first], alive[second]
            if a_born > b_dies or b_born > a_dies:
                continue
            if not _handed_over(graph, first, second, alive):
                said.append(f"{first} and {second} share bytes while both are alive")
    return said


def _handed_over(graph: Graph, first: str, second: str, alive: Mapping[str, tuple[int, int]]) -> bool:
    """Whether one is the result in place of the other, which dies in that operation."""
    older, younger = (first, second) if alive[first][0] <= alive[second][0] else (second, first)
    number = alive[younger][0]
    op = graph.ops[number]
    in_place = op.IN_PLACE is not None and getattr(op, op.IN_PLACE) == older and younger in op.writes
    return in_place and alive[older][1] == number


def products(graph: Graph) -> dict[str, int]:
    """Multiplications with an addition of one example: `forward`, `backward` (gradients of inputs and of
    weights)."""
    forward = backward = 0
    for op in graph.ops:
        if isinstance(op, DepthwiseConv2d | Conv2d | FullyConnected):
            y, weight = graph.tensors[op.y], graph.tensors[op.weight]
            places = math.prod(y.shape[:-1])
            each = weight.size
            forward += places * each
        elif isinstance(op, GradInput):
            g, weight = graph.tensors[op.gradient], graph.tensors[op.weight]
            backward += math.prod(g.shape[:-1]) * weight.size
        elif isinstance(op, GradWeight):
            backward += _weight_products(graph, op)
        elif isinstance(op, Step):
            backward += _weight_products(graph, op.weight_gradient)
    return {"forward": forward, "backward": backward}


def _weight_products(graph: Graph, op: GradWeight) -> int:
    g, x = graph.tensors[op.gradient], graph.tensors[op.x]
    places = math.prod(g.shape[:-1])
    outputs = 1 if op.kind == "depthwise" else g.shape[-1]
    return places * outputs * math.prod(op.kernel) * x.shape[-1]


def parameter_nbytes(graph: Graph) -> int:
    """RAM of what learns: of each parameter the part that its update changes."""
    total = 0
    for op in graph.ops:
        if isinstance(op, STEPS):
            tensor = graph.tensors[op.parameter]
            channels = None if isinstance(op, BiasStep) else op.channels
            total += tensor.nbytes if channels is None else tensor.nbytes // tensor.shape[-1] * len(channels)
    return total


def flash_nbytes(graph: Graph) -> int:
    """Bytes of all constants: weights, biases, and tables of the way back. What learns is there as well,
    for the first start."""
    return sum(graph.tensors[name].nbytes for name in graph.constants if name in graph.tensors)


def naive_nbytes(graph: Graph) -> int:
    """What an executor holds that keeps every activation and its gradient, and the gradient of every
    parameter, in f32 until the step is over: the baseline."""
    activations = {name for op in graph.ops for name in op.writes} | set(graph.inputs)
    numbers = sum(graph.tensors[name].size for name in activations if graph.tensors[name].dtype != "bit")
    return 4 * numbers
