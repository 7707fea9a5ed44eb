"""D2MoE: many texts at once on experts in nested bits, read from storage plane by plane, the hottest first.

Paper: Wang et al., "D2MoE: Dual Routing and Dynamic Scheduling for Efficient On-Device MoE-based LLM Serving"
(2025).
What is here: when a layer's routers have chosen experts and levels for all texts of a step, `demand` counts
the tokens that need each plane of each expert (a token of level k needs the planes 0 to k). HEBF (`schedule`)
orders what is absent: of the next plane of every expert the one that most tokens need is read first, of equal
ones the lower plane, then the lower expert. Each plane is multiplied with its tokens as it arrives
(run/layers/_by_plane.py), so the processor waits little. Planes that are there already are computed first.
Room is made as the paper's budget says: the running layer's planes of the step before leave first, high ones
before bases; then planes of other layers, high ones first and of these the farthest (`Planes`). Experts whose
planes do not fit together are taken in several waves.
What we changed: the paper counts, for the order, the tokens that chose exactly a width; that starves base
planes (`demand` counts all that need the plane) [inferred]. A token's down product waits for its last plane,
because the activation between is not linear; gate and up products do not. Among planes of equal rank the one
asked for least leaves first [inferred].
Cost: as EdgeMoE's.
Limits: no guesses: planes are read when they are chosen. Texts of a step go through the layers together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from haversack.core._record import STORE_NAME
from haversack.core.errors import UserError, not_allowed
from haversack.core.method import Method, parameter
from haversack.core.pack import TensorSource
from haversack.run._residency import Held, Lines
from haversack.run._shelf import Key

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Item = tuple[int, int]
"""(expert, plane)."""
ORDERS = ("hebf", "id-order", "optimal")
MOST_TRIED = 7
"""Items up to which the best order is looked for among all."""


def demand(experts: I32, levels: I32, count: int, planes: int, nested: bool = True) -> I64:
    """How many tokens need each plane, i64 [count, planes], where token i reads level `levels`[i, j] of its
    expert `experts`[i, j] (both i32 [n, top]). Not `nested`: a level is a copy of its own.
    """
    exact: I64 = np.zeros((count, planes), np.int64)
    np.add.at(exact, (experts.reshape(-1), levels.reshape(-1)), 1)
    return exact[:, ::-1].cumsum(axis=1)[:, ::-1] if nested else exact


def schedule(
    needs: I64,
    order: str = "hebf",
    resident: Collection[Item] = (),
    *,
    heat: I64 | None = None,
    load_s: Sequence[float] = (),
    compute_s: Sequence[float] = (),
) -> list[Item]:
    """The order in which planes are computed, and the absent ones read; `needs` [experts, planes] are those
    of `demand`.

    Planes of one expert keep their order. `hebf`: a plane that is `resident` comes when it is the next of its
    expert, and otherwise the hottest of all experts' next ones; `heat` [experts, planes] is what counts as
    heat (None: the needs). `id-order`: expert by expert. `optimal`: the order of the shortest `makespan`
    among all, for at most MOST_TRIED items, with `load_s` and `compute_s` of each plane. Raises UserError for
    other orders and for more items.
    """
    if order not in ORDERS:
        raise not_allowed("schedule", order, ORDERS)
    heat = needs if heat is None else heat
    queues = {
        expert: [(expert, plane) for plane in range(needs.shape[1]) if needs[expert, plane]]
        for expert in range(len(needs))
    }
    if order == "id-order":
        return [item for queue in queues.values() for item in queue]
    if order == "optimal":
        return _best(queues, needs, resident, load_s, compute_s)
    found: list[Item] = []
    heads = {expert: queue[0] for expert, queue in queues.items() if queue}
    while heads:
        there = [head for head in heads.values() if head in resident]
        expert, plane = min(there or heads.values(), key=lambda head: (-heat[head], head[1], head[0]))
        found.append((expert, plane))
        queues[expert].pop(0)
        if queues[expert]:
            heads[expert] = queues[expert][0]
        else:
            del heads[expert]
    return found


def _best(
    queues: Mapping[int, list[Item]],
    needs: I64,
    resident: Collection[Item],
    load_s: Sequence[float],
    compute_s: Sequence[float],
) -> list[Item]:
    items = [item for queue in queues.values() for item in queue]
    if len(items) > MOST_TRIED:
        raise UserError(
            f"the best order of {len(items)} planes is not looked for (at most {MOST_TRIED}); use "
            "schedule=hebf.",
            field="schedule",
            given="optimal",
            nearest="hebf",
        )
    experts = [expert for expert, _ in items]
    best, least = items, float("inf")
    for turns in set(permutations(experts)):
        left = {expert: iter(queue) for expert, queue in queues.items()}
        tried = [next(left[expert]) for expert in turns]
        took = makespan(tried, needs, load_s, compute_s, resident)[0]
        if (took, tried) < (least, best):
            best, least = tried, took
    return best


def makespan(
    order: Sequence[Item],
    needs: I64,
    load_s: Sequence[float],
    compute_s: Sequence[float],
    resident: Collection[Item] = (),
) -> tuple[float, float]:
    """(seconds, seconds of them that the processor waits) of reading and computing the items in `order`, one
    of each at a time: a plane takes `load_s` to read and `compute_s` for each token.

    >>> needs = np.array([[1], [4]])
    >>> [makespan(schedule(needs, order), needs, [2], [1])[0] for order in ("id-order", "hebf")]
    [8.0, 7.0]
    """
    read = done = waited = 0.0
    for expert, plane in order:
        there = 0.0
        if (expert, plane) not in resident:
            read += load_s[plane]
            there = read
        waited += max(0.0, there - done)
        done = max(done, there) + float(needs[expert, plane]) * compute_s[plane]
    return done, waited


def waves(needs: I64, nbytes: Mapping[Item, int], budget: int, resident: Collection[Item] = ()) -> list[I64]:
    """`needs` in parts, one after the other, each of whole experts whose planes fit into `budget` bytes
    together: first the experts that most bytes of are there, then the hottest."""
    sizes, there = {}, {}
    for expert in np.flatnonzero(needs.any(axis=1)).tolist():
        planes = [(expert, plane) for plane in np.flatnonzero(needs[expert]).tolist()]
        sizes[expert] = sum(nbytes[item] for item in planes)
        there[expert] = sum(nbytes[item] for item in planes if item in resident)
    if sum(sizes.values()) <= budget:
        return [needs] if sizes else []
    found: list[I64] = []
    room = -1
    for expert in sorted(sizes, key=lambda one: (-there[one], -needs[one].max(), one)):
        if sizes[expert] > room:
            found.append(np.zeros_like(needs))
            room = budget
        found[-1][expert] = needs[expert]
        room -= sizes[expert]
    return found


class Planes:
    """The paper's budget as an eviction (run/_shelf.py): keys are (layer, expert, plane)."""

    def __init__(self, layers: int, planes: int) -> None:
        self.layers, self.planes = layers, planes
        self._asked: dict[Key, int] = {}
        self._most = 1

    def loaded(self, key: Key) -> None:
        """See Eviction."""

    def used(self, key: Key) -> None:
        """See Eviction."""
        self._asked[key] = count = self._asked.get(key, 0) + 1
        self._most = max(self._most, count)

    def keep(self, key: Key, layer: int) -> float:
        """See Eviction; larger for what leaves later."""
        ahead = (key[0] - layer) % self.layers  # 0: the running layer
        plane = self.planes - 1 - key[2]
        rank = plane if ahead == 0 else self.planes * (1 + self.layers) + plane * self.layers - ahead
        return rank + self._asked.get(key, 0) / (self._most + 1)


@dataclass(frozen=True)
class D2Moe(Method):
    name = "streamed:d2moe"
    stage = "run"
    slot = "residency"
    paper = (
        "Wang et al., D2MoE: Dual Routing and Dynamic Scheduling for On-Device MoE-based LLM Serving (2025)"
    )
    summary = "Experts' bits are read plane by plane, those that most texts of a step need first."
    system = 27
    requires = frozenset({"expert-store:experts", "weight-type:nested"})
    excludes = frozenset({"mapped-weights", "sealed-weights", "encoder-decoder"})
    checks: ClassVar[tuple[str, ...]] = (STORE_NAME,)
    """Files whose every read is checked, so that they are not summed before."""

    buffer_kib: int = parameter(
        -1, help="KiB of planes kept in memory; -1: as many as the budget allows, ten experts without one"
    )
    schedule: str = parameter(
        "hebf",
        allowed=("hebf", "id-order"),
        help="order in which planes are read: the hottest first, or by number",
    )
    eviction: str = parameter(
        "planes",
        allowed=("planes", "intent", "lru", "none"),
        help="what leaves a full buffer first; none: what was used leaves at once",
    )
    bits: int = parameter(0, help="bits that every token reads; 0: as the pack's bit routers say, else all")
    mb_s: int = parameter(
        0, help="storage to be emulated, in 10^6 bytes a second; 0: as fast as this machine's"
    )
    timeout_s: int = parameter(30, help="seconds after which a storage that gives nothing is given up")

    def fitted(self, source: TensorSource, architecture: Any) -> Any:
        """The method for one model: its `planned` knows the sizes of the planes."""
        from haversack.run.residency._d2moe_held import Fitted

        return Fitted.of(self, source, architecture)

    def sized(self, parts: Mapping[Key, Sequence[tuple[str, int]]], chosen: int) -> Any:
        """The method for experts that are not stored yet: (kind, bytes) of each one's tensors."""
        from haversack.run.residency._d2moe_held import SizedPlanes
        from haversack.run.residency._edgemoe_held import Room

        rooms = {key: Room.sized(sum(count for _, count in own), own) for key, own in parts.items()}
        held = sum(count for own in parts.values() for _, count in own)
        return SizedPlanes(self, rooms, 1, held)

    def planned(
        self, blocks: Sequence[int], top: int, files: int = 1, limit: int | None = None, aside: int = 0
    ) -> Lines:
        """All weights; `fitted` says less of a model with experts."""
        from haversack.run.residency.copied import Copied

        return Copied().planned(blocks, top, files, limit, aside)

    def open(self, source: TensorSource, architecture: Any, limit: int | None = None) -> Held:
        """Bring what every token uses into memory and open the expert store."""
        held: Held = self.fitted(source, architecture).open(limit)
        return held
