"""A result over what it is computed from: the arena where pictures are read and written row by row.

Paper: Blacker, Bridges and Hadfield, "Diagonal Memory Optimisation for Machine Learning on Micro-controllers"
(arXiv 2010.01668, 2020).
What is here: a kernel that goes over its rows in order needs, for row r of its result, the rows of its input
from r stride - pad on, and none before. So the result may lie over the input as long as the end of each
row that is written stays below the first row that is still to be read; or above all that is still to be read,
where the rows are taken from the last to the first. `Gap` says by how many bytes the result has to begin
before or behind the input for that: one or two rows for most windows, none for sums and bounds, which read
a number and write it. `gaps` finds the pairs of a graph (the input has to die there); `packed` places
everything, such pairs no nearer than their gap, and lets the arena grow at either end; `backwards` says of a
plan which layers start with their last row.
What we changed: the paper reads gaps from traces of memory or works them out for each kernel by hand; here
they follow from windows and strides at the grain of rows, which holds for every kernel of ours, whatever a
row's columns are computed in. Rows from last to first are ours: by turns with the usual order, layers of
one size stay where they are. The search for places is a greedy one of this package.
Cost: none when it runs. Limits: layers whose rows threads share, matrices and means keep result and input
apart; so does a step of training, which goes back over its inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from haversack.models.graph._ir import Add, AveragePool, Clamp, Conv2d, DepthwiseConv2d, Graph, MaxPool, Op
from haversack.models.graph.plan import ALIGNMENT, Arena, Life

SYSTEM = 18


@dataclass(frozen=True)
class Gap:
    """Bytes by which a result begins `before` its input, or more, where rows are taken from the first on; by
    which it begins `behind` it, or more, where they are taken from the last on."""

    before: int
    behind: int


Gaps = Mapping[tuple[str, str], Gap]
"""(Result, input), each by the first name of its piece of memory."""


def gap(written: int, read: int, needed: Sequence[tuple[int, int]]) -> Gap:
    """The gap between rows of `written` bytes of the result and rows of `read` bytes of the input, of which
    row r of the result needs those from `needed[r][0]` to before `needed[r][1]`."""
    before = max((row + 1) * written - first * read for row, (first, _) in enumerate(needed))
    behind = max(last * read - row * written for row, (_, last) in enumerate(needed))
    return Gap(_aligned(before), _aligned(behind))


def gap_of(graph: Graph, op: Op, name: str) -> Gap | None:
    """The gap between what `op` writes and its operand `name`; None where they have to lie apart."""
    x, y = graph.tensors[name], graph.tensors[op.writes[0]]
    if getattr(op, "mask", None) is not None or x.dtype != y.dtype:
        return None
    if isinstance(op, Add | Clamp):
        return Gap(0, _aligned(x.nbytes))
    if not isinstance(op, Conv2d | AveragePool | MaxPool) or len(x.shape) != 3 or len(y.shape) != 3:
        return None
    if isinstance(op, Conv2d):
        tall = graph.tensors[op.weight].shape[0 if isinstance(op, DepthwiseConv2d) else 1]
    else:
        tall = op.size[0]
    tops = [row * op.stride[0] - op.pads[0][0] for row in range(y.shape[0])]
    needed = [(min(max(top, 0), x.shape[0]), min(max(top + tall, 0), x.shape[0])) for top in tops]
    found = gap(y.nbytes // y.shape[0], x.nbytes // x.shape[0], needed)
    return found if isinstance(op, Conv2d) else replace(found, behind=_aligned(x.nbytes))


def gaps(graph: Graph, lives: Sequence[Life], apart: Collection[str] = ()) -> dict[tuple[str, str], Gap]:
    """The pairs of `lives` that may overlap. `apart`: results that may not."""
    homes = {name: life for life in lives for name in life.names}
    found: dict[tuple[str, str], Gap] = {}
    for number, op in enumerate(graph.ops):
        if len(op.writes) != 1 or op.writes[0] in apart:
            continue
        y = homes[op.writes[0]]
        for name in {name for name in op.reads if name in homes}:
            x = homes[name]
            if x is not y and x.last == number == y.first and (by := gap_of(graph, op, name)) is not None:
                found[y.names[0], x.names[0]] = by
    return found


def backwards(graph: Graph, plan: Arena, op: Conv2d) -> bool:
    """Whether the plan has the result of `op` over the end of its input."""
    places = plan.places()
    (x, nbytes), (y, _) = places[op.x], places[op.y]
    return x < y < x + nbytes


def packed(lives: Sequence[Life], by: Gaps) -> Arena:
    """A place for each: of a few orders the one with the smallest arena."""
    count = max((life.last for life in lives), default=-1) + 1
    alive = [sum(life.nbytes for life in lives if life.first <= at <= life.last) for at in range(count)]
    fullest = {life.names: max(alive[life.first : life.last + 1]) for life in lives}
    orders = (
        sorted(lives, key=lambda life: (-life.nbytes, life.first - life.last)),
        sorted(lives, key=lambda life: (life.first - life.last, -life.nbytes)),
        sorted(lives, key=lambda life: (-fullest[life.names], -life.nbytes)),
        sorted(lives, key=lambda life: (-fullest[life.names], life.first)),
        sorted(lives, key=lambda life: (-fullest[life.names], -life.last)),
        sorted(lives, key=lambda life: life.first),
        sorted(lives, key=lambda life: -life.last),
    )
    bound = lower_bound(lives, by)
    return min((_placed(order, by, bound) for order in orders), key=lambda found: found.nbytes)


def _placed(lives: Sequence[Life], by: Gaps, bound: int) -> Arena:
    starts: list[int] = []
    low = high = 0
    for number, life in enumerate(lives):
        size = _aligned(life.nbytes)
        taken = [_forbidden(life, lives[i], starts[i], by) for i in range(number) if lives[i].meets(life)]
        edges = {low, max(low, high - size), *(edge for pair in taken for edge in pair)}
        free = [edge for edge in edges if not any(below < edge < above for below, above in taken)]
        start = min(free, key=lambda edge: (max(high, edge + size) - min(low, edge), edge))
        starts.append(start)
        low, high = min(low, start), max(high, start + size)
    offsets = tuple(start - low for start in starts)
    return Arena(tuple(lives), offsets, high - low, bound)


def _forbidden(life: Life, other: Life, start: int, by: Gaps) -> tuple[int, int]:
    """Between which two places, both allowed, `life` may not begin while `other` begins at `start`."""
    if (own := by.get((life.names[0], other.names[0]))) is not None:
        return start - own.before, start + own.behind
    if (its := by.get((other.names[0], life.names[0]))) is not None:
        return start - its.behind, start + its.before
    return start - _aligned(life.nbytes), start + _aligned(other.nbytes)


def lower_bound(lives: Sequence[Life], by: Gaps) -> int:
    """The most bytes that are alive at one operation, overlaps counted once: no plan can go below."""
    sizes = {life.names[0]: _aligned(life.nbytes) for life in lives}
    saved: dict[str, int] = {}
    for (y, x), least in by.items():
        together = min(max(sizes[y], least.before + sizes[x]), max(sizes[x], least.behind + sizes[y]))
        saved[y] = min(saved.get(y, 0) + sizes[x] + sizes[y] - together, sizes[y])
    totals = [
        sum(sizes[life.names[0]] for life in lives if life.first <= number <= life.last)
        - sum(saved.get(life.names[0], 0) for life in lives if life.first == number)
        for number in {life.first for life in lives}
    ]
    return max(totals, default=0)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
