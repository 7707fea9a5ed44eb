"""Bits for each expert under a budget of lost quality: which experts lose least, and how many may be narrow.

The maths of EdgeMoE's first step on any measure: `measure(plan)` is the loss of the model with the experts of
the plan at those widths, whatever a width and a loss are. shrink/precision/edgemoe.py measures a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from haversack.core.errors import UserError, not_allowed

Expert = tuple[int, ...]
"""(layer, expert)."""
Plan = Mapping[Expert, int]
Measure = Callable[[Plan], float]

WIDTHS = (2, 4, 8, 16, 32)
"""Bits an expert may have; 16 and 32 are floats."""
BASE, LOWERED = 4, 2
"""Importance is what an expert costs at LOWERED where all others have BASE."""
LINEAR = 8
"""Most single steps after the search by halves."""


@dataclass(frozen=True)
class BitPlan:
    """The chosen `bits` of every expert, the `loss` measured for them and the one of the model as it came.

    `lower` and `upper` are the widths that were mixed, `order` the experts from the least important on, the
    first `lowered` of which have `lower`. `measured` counts the plans that were measured.
    """

    bits: Mapping[Expert, int]
    loss: float
    reference: float
    lower: int
    upper: int
    lowered: int
    order: tuple[Expert, ...]
    importance: Mapping[Expert, float]
    measured: int

    @property
    def increase(self) -> float:
        """Share of the reference by which the loss grew."""
        return self.loss / self.reference - 1

    @property
    def mean_bits(self) -> float:
        """Of all experts, scales not counted."""
        return sum(self.bits.values()) / len(self.bits)

    def record(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "mean_bits": round(self.mean_bits, 4),
            "increase": round(self.increase, 6),
            "lower": self.lower,
            "upper": self.upper,
            "lowered": self.lowered,
            "experts": len(self.bits),
            "measured": self.measured,
        }


def importances(measure: Measure, experts: Sequence[Expert]) -> dict[Expert, float]:
    """How much the loss grows when one expert alone has LOWERED bits and the others BASE."""
    plan = dict.fromkeys(experts, BASE)
    base = measure(plan)
    return {expert: measure({**plan, expert: LOWERED}) - base for expert in experts}


def bounds(
    measure: Measure, experts: Sequence[Expert], widths: Sequence[int], most: float
) -> tuple[int, int]:
    """(lower, upper): the narrowest width at which all experts together lose no more than to `most`, and the
    one below it; the same twice where the narrowest does. The widest is taken where none does.
    """
    below = widths[0]
    for width in widths:
        if width == widths[-1] or measure(dict.fromkeys(experts, width)) <= most:
            return below, width
        below = width
    raise AssertionError("there is a last width")


def mixed(order: Sequence[Expert], count: int, lower: int, upper: int) -> dict[Expert, int]:
    """The first `count` of `order` at `lower` bits, the rest at `upper`."""
    return {expert: lower if index < count else upper for index, expert in enumerate(order)}


def most_lowered(measure: Measure, order: Sequence[Expert], lower: int, upper: int, most: float) -> int:
    """How many experts of `order` can have `lower` bits with a loss of at most `most`: by halves, as if the
    loss only grew, then by single steps as long as they hold.
    """
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        if measure(mixed(order, middle, lower, upper)) <= most:
            low = middle
        else:
            high = middle - 1
    for _ in range(LINEAR):
        if low == len(order) or measure(mixed(order, low + 1, lower, upper)) > most:
            break
        low += 1
    return low


def plan_bits(
    measure: Measure,
    experts: Sequence[Expert],
    reference: float,
    max_loss: float,
    *,
    widths: Sequence[int] = WIDTHS,
    importance: Mapping[Expert, float] | None = None,
) -> BitPlan:
    """Widths for `experts` whose loss is at most `reference` * (1 + `max_loss`), as narrow as found.

    `importance` orders the experts (None: it is measured). Raises UserError for a loss below 0, widths that
    do not exist, and no experts.
    """
    if not max_loss >= 0:
        raise UserError(
            f"max_loss={max_loss} is no loss; use 0 or more (0.02 is 2 %).",
            field="max_loss",
            given=max_loss,
            nearest=0.02,
        )
    for width in widths:
        if width not in WIDTHS:
            raise not_allowed("bits", width, WIDTHS)
    if not experts:
        raise UserError("the model has no experts whose bits could be chosen.", field="model")
    most = reference * (1 + max_loss)
    known: dict[tuple[int, ...], float] = {}

    def measured(plan: Plan) -> float:
        key = tuple(plan[expert] for expert in experts)
        if key not in known:
            known[key] = measure(plan)
        return known[key]

    ranked = importances(measured, experts) if importance is None else importance
    order = tuple(sorted(experts, key=lambda expert: (ranked[expert], expert)))
    ascending = sorted(widths)
    lower, upper = bounds(measured, experts, ascending, most)
    count = len(order) if lower == upper else most_lowered(measured, order, lower, upper, most)
    bits = mixed(order, count, lower, upper)
    return BitPlan(bits, measured(bits), reference, lower, upper, count, order, dict(ranked), len(known))
