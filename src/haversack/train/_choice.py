"""Which methods train within a budget: every combination that they offer, planned, and one of them taken.

Each method says for which networks it serves and in which ways (`offers`); each combination is planned by
the methods' own `plan` on a freshly opened network that `prepare` has made ready. Of those that fit the
budget the first is taken in this order:

1. how exact its steps are: the gradient before a mixture, a mixture before an estimate;
2. how exact its numbers are: none rounded before rounded;
3. how many numbers learn, the most first;
4. the order in which the methods name their own ways, the best first;
5. the memory that it takes, the least first.

The order is stated, not measured: `haversack train fit --compare` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from haversack.core import index
from haversack.core.budget import Budget, BudgetError
from haversack.core.errors import MissingExtraError, UserError
from haversack.core.memory import MemoryPlan
from haversack.train._meter import memory_plan
from haversack.train._network import Network, numbers_of
from haversack.train._slots import Gradient, Parameters, Precision

SLOTS = ("parameters", "gradient", "precision")


@dataclass(frozen=True)
class Scheme:
    """One choice of each slot for one network: how many `numbers` learn, what it will hold."""

    parameters: str
    gradient: str
    precision: str
    numbers: int
    memory: MemoryPlan
    rank: tuple[int, int, int, int, int]

    @property
    def slots(self) -> dict[str, str]:
        """Slot -> choice, aggregation too."""
        chosen = {slot: getattr(self, slot) for slot in SLOTS}
        return {**chosen, "aggregation": "alone"}

    @property
    def label(self) -> str:
        """As people read it."""
        return f"{self.parameters}, {self.gradient}, {self.precision}"

    def record(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            **{slot: getattr(self, slot) for slot in SLOTS},
            "learned_numbers": self.numbers,
            "ram_mib": round(self.memory.total_mib, 2),
        }


@dataclass(frozen=True)
class Choice:
    """The scheme that was taken, why, and all that were looked at, the best first."""

    scheme: Scheme
    why: str
    schemes: tuple[Scheme, ...]


def schemes(
    open_again: Callable[[], Network],
    opened: int,
    rows: int,
    seed: int,
    given: dict[str, str | None],
) -> tuple[Scheme, ...]:
    """Every combination for one network, in the order of preference; a slot that `given` names stays so.

    `open_again` opens the network anew, with the head that it will have; `opened` is what the process holds
    with it open. Methods whose extra is not installed are left out, and so are combinations that one of
    their methods refuses. Raises the UserError of that method where a person named it and nothing is left.
    """
    network = open_again()
    offered = {slot: tuple(_offers(slot, given.get(slot), network)) for slot in SLOTS}
    del network
    found, refused = [], None
    for at, (parameters, how) in enumerate(offered["parameters"]):
        ready = open_again()
        try:
            learned = cast(Parameters, how).prepare(ready, seed)
        except UserError:
            if given.get("parameters") is not None:
                raise
            continue
        numbers = numbers_of(ready, learned.wanted)
        for behind, (gradient, way) in enumerate(offered["gradient"]):
            for below, (precision, kind) in enumerate(offered["precision"]):
                if _conflict(parameters, gradient, precision):
                    continue
                steps = cast(Gradient, way)
                try:
                    memory = memory_plan(opened, ready, learned, steps, rows)
                except UserError as error:
                    refused = refused or error
                    continue
                place = at + 100 * behind + 10_000 * below
                exact = (steps.exactness, cast(Precision, kind).exactness)
                rank = (*exact, -numbers, place, memory.total_bytes)
                found.append(Scheme(parameters, gradient, precision, numbers, memory, rank))
    if not found and refused is not None and (given.get("gradient") or given.get("precision")):
        raise refused
    return tuple(sorted(found, key=lambda scheme: scheme.rank))


def choose(found: tuple[Scheme, ...], budget: Budget, network: str, *, named: bool = False) -> Choice:
    """The first of `found` within `budget`; `named`: a person named every slot.

    Raises BudgetError, with the bytes that the smallest needs, when none fits; UserError when there is none
    at all.
    """
    if not found:
        raise UserError(
            f"no combination of methods trains {network}; see: haversack train fit --help.",
            field="parameters",
            given=network,
        )
    fits = [scheme for scheme in found if budget.fits({"ram_mib": scheme.memory.total_mib})]
    if not fits:
        least = min(found, key=lambda scheme: scheme.memory.total_bytes)
        which = "" if named else "the smallest scheme, "
        what = f"training {network} by {which}{least.label} ({least.memory.total_bytes:,} bytes)"
        raise BudgetError(budget.failures({"ram_mib": least.memory.total_mib}), what)
    first = fits[0]
    limit = "no budget is set" if budget.ram_mib is None else f"the budget is {budget.ram_mib:g} MiB"
    if named:
        return Choice(first, f"named; planned {first.memory.total_mib:.1f} MiB ({limit})", found)
    why = (
        f"{len(fits)} of {len(found)} schemes fit ({limit}); of these, the most exact steps, then the most "
        f"numbers that learn ({first.numbers:,}); planned {first.memory.total_mib:.1f} MiB"
    )
    over = next((scheme for scheme in found if scheme.rank < first.rank and scheme not in fits), None)
    if over is not None:
        why += f" ({over.label} would need {over.memory.total_mib:.1f} MiB)"
    return Choice(first, why, found)


def _offers(slot: str, given: str | None, network: Network) -> Iterator[tuple[str, Any]]:
    """(choice as written, method) of a slot."""
    if given is not None:
        yield given, index.create("train", slot, given)
        return
    for entry in index.methods("train", slot):
        try:
            ways = cast(Parameters, index.create("train", slot, entry.name)).offers(network)
        except MissingExtraError:
            continue
        for way in ways:
            yield way, index.create("train", slot, way)


def _conflict(*chosen: str) -> bool:
    entries = [index.find("train", slot, _name(slot, text)) for slot, text in zip(SLOTS, chosen, strict=True)]
    return bool(index.conflicts(entries))


def _name(slot: str, text: str) -> str:
    names = {entry.name for entry in index.methods("train", slot)}
    variant = ":".join(text.split(":")[:2])
    return variant if variant in names else text.partition(":")[0]
