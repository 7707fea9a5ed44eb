"""The search: measure the most promising plans within the effort, then choose by what was measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Protocol

from haversack.core.budget import Budget
from haversack.plan._candidates import (
    Candidate,
    Plan,
    choose,
    ranked,
    refusal,
    with_fitted_loss,
)
from haversack.plan._measure import RunFigures

# What the loss of a plan may be below its prediction, before one is refused for it unmeasured.
DOUBT = 3.0
# What is packed within seconds; methods that move scales or learn are measured when these are through.
FIRST = ("keep", "round-to-nearest", "gptq", "as-stored")
VARIANTS = 3  # ways to run one pack that are measured, the best predicted first


class Workshop(Protocol):
    """What the search asks for; plan/_job.py does the work."""

    def quality(self, plan: Plan) -> float:
        """Bits per byte of the evaluation text under `plan`, packed first if it is not."""

    def figures(self, plan: Plan) -> RunFigures:
        """Speed and memory of a fresh process under `plan`, packed first if it is not."""

    def storage_mib(self, plan: Plan) -> float:
        """Size of the pack of `plan`."""


@dataclass
class Clock:
    """Seconds left of an effort."""

    effort_s: float
    now: Callable[[], float] = time.monotonic
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.now()

    @property
    def spent_s(self) -> float:
        return self.now() - self.started

    @property
    def left_s(self) -> float:
        return self.effort_s - self.spent_s


def screened(candidates: Sequence[Candidate], budget: Budget, what: str) -> list[Candidate]:
    """Those that may fit `budget`, judged mildly where a prediction may be far off.

    Raises BudgetError when none can.
    """
    fitting = [candidate for candidate in candidates if budget.fits(mild(candidate).demand())]
    if not fitting:
        raise refusal([mild(candidate) for candidate in candidates], budget, what)
    return fitting


def order_of_measuring(candidates: Sequence[Candidate], objective: str) -> list[Candidate]:
    """Plans in the order in which to measure them.

    By the objective, but taking turns between methods and bits, so that the effort shows something of every
    kind: the best of each, then the next pack of each, then other ways to run those packs. Methods that are
    not of FIRST take their turns after those, then comes what is left.
    """
    early = [one for one in candidates if one.plan.precision.partition(":")[0] in FIRST]
    late = [one for one in candidates if one not in early]
    first = [*turns(early, objective), *turns(late, objective)]
    return [*first, *(one for one in ranked(candidates, objective) if one not in first)]


def turns(candidates: Sequence[Candidate], objective: str) -> list[Candidate]:
    """The best of each method and bits, then the next pack of each, then other ways to run those packs."""
    packs: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in ranked(candidates, objective):
        packs.setdefault(candidate.plan.stored, []).append(candidate)
    families: dict[tuple[str, str, int], list[list[Candidate]]] = {}
    for (precision, structure), ways in packs.items():
        family = (precision.partition(":")[0], structure, round(ways[0].bits / 2))
        families.setdefault(family, []).append(variants(ways))
    taken = [pack for turn in zip_longest(*families.values()) for pack in turn if pack is not None]
    return [way for turn in zip_longest(*taken) for way in turn if way is not None]


def variants(ways: Sequence[Candidate]) -> list[Candidate]:
    """The VARIANTS best of `ways` (best first) that differ in activations, residency or cache, different
    ones first.
    """
    chosen = [ways[0]]
    for key in ("activations", "residency", "cache_type"):
        best = ways[0].plan
        others = [
            one
            for one in ways
            if getattr(one.plan, key) != getattr(best, key)
            and replace(one.plan, **{key: getattr(best, key)}) == best
        ]
        chosen += others[:1]
    return chosen[:VARIANTS]


def search(
    candidates: Sequence[Candidate],
    noises: Mapping[Plan, float],
    budget: Budget,
    objective: str,
    reference: float,
    workshop: Workshop,
    clock: Clock,
    what: str,
    tell: Callable[[str], None],
) -> tuple[list[Candidate], Candidate]:
    """Measure plans until the effort is spent; all candidates as now known, and the chosen one.

    `reference` is the quality of the f32 model. At least one plan is measured, and as many more as it takes
    for one to fit. Raises BudgetError when every plan that might fit was measured and none does.
    """
    known = {candidate.plan: candidate for candidate in candidates}
    longest = more_mib = 0.0
    for candidate in order_of_measuring(screened(candidates, budget, what), objective):
        begun = clock.spent_s
        if choose(list(known.values()), budget, objective) is not None and clock.left_s < longest:
            break
        if budget.fits(mild(candidate, more_mib).demand()):
            tell(candidate.plan.label)
            known[candidate.plan] = found = measured(candidate, reference, workshop)
            more_mib = max(more_mib, found.ram_mib - candidate.ram_mib)
            longest = max(longest, clock.spent_s - begun)
    best = choose(list(known.values()), budget, objective)
    if best is None:
        raise refusal([mild(one, more_mib) for one in known.values()], budget, what)
    return with_fitted_loss(list(known.values()), noises), best


def mild(candidate: Candidate, more_mib: float = 0.0) -> Candidate:
    """A predicted candidate as it is judged before it is measured.

    Its loss may be DOUBT times smaller than predicted; its memory `more_mib` larger, as that of measured ones
    was (predictions are for the device, whose programs may be smaller than those here).
    """
    if candidate.source == "measured":
        return candidate
    return replace(candidate, ram_mib=candidate.ram_mib + more_mib, loss=candidate.loss / DOUBT)


def measured(candidate: Candidate, reference: float, workshop: Workshop) -> Candidate:
    """`candidate` with quality, speed, memory and storage as measured; the device's speed stays predicted."""
    begun = time.monotonic()
    quality = workshop.quality(candidate.plan)
    figures = workshop.figures(candidate.plan)
    return replace(
        candidate,
        quality=quality,
        loss=quality / reference - 1.0,
        here=figures.tokens_per_s,
        ram_mib=figures.ram_mib,
        storage_mib=workshop.storage_mib(candidate.plan),
        source="measured",
        seconds=time.monotonic() - begun,
    )
