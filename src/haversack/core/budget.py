"""The budget judges the plan: what a job may take of memory, storage, time, energy, network, money, quality,
privacy.

Every field is optional; an absent one does not limit. A demand is a mapping from the same field names to what
a plan would take. `Budget.failures` compares the two, and `BudgetError` refuses a plan before work starts,
naming every field that failed with the nearest value that would do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from haversack.core.errors import UserError, not_allowed

# What may leave the device, the strictest first.
PRIVACY = ("device", "derived", "any")

UNITS: dict[str, str] = {
    "ram_mib": "MiB",
    "storage_mib": "MiB",
    "latency_ms": "ms",
    "energy_mj": "mJ",
    "uplink_kib": "KiB",
    "cost_usd": "USD",
    "max_quality_loss": "",
    "privacy": "",
}


@dataclass(frozen=True)
class Failure:
    """One field that a demand exceeds. `needed` is the smallest limit (for `privacy`: the strictest level)
    that holds the demand, rounded upwards to three significant digits, so that typing it works."""

    field: str
    limit: float | str
    needed: float | str
    unit: str

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.field} is {_shown(self.limit)}{unit} and needs at least {_shown(self.needed)}{unit}"


@dataclass(frozen=True)
class Budget:
    """Limits of a job; None does not limit.

    `ram_mib`: peak memory of the run (core/memory.py says how it is counted). `storage_mib`: bytes of the
    pack. `latency_ms`: to the first output. `energy_mj`: of one job. `uplink_kib`: bytes sent. `cost_usd`:
    paid to others. `max_quality_loss`: a fraction, 0.01 is one percent worse. `privacy`: what may leave the
    device: `device` (nothing), `derived` (features and summaries), `any`. Raises UserError for a limit that
    is negative, zero memory or not a number.
    """

    ram_mib: float | None = None
    storage_mib: float | None = None
    latency_ms: float | None = None
    energy_mj: float | None = None
    uplink_kib: float | None = None
    cost_usd: float | None = None
    max_quality_loss: float | None = None
    privacy: str | None = None

    def __post_init__(self) -> None:
        for name, limit in self.limits().items():
            if name == "privacy":
                if limit not in PRIVACY:
                    raise not_allowed(name, limit, PRIVACY)
            elif isinstance(limit, bool) or not isinstance(limit, int | float) or math.isnan(limit):
                raise UserError(f"{name}={limit!r} is not a number.", field=name, given=limit)
            elif limit < 0 or (limit == 0 and name in ("ram_mib", "storage_mib", "latency_ms")):
                raise UserError(
                    f"{name}={limit} leaves no room for anything; give a value above 0.",
                    field=name,
                    given=limit,
                )

    def limits(self) -> dict[str, Any]:
        """The fields that are set, in declared order."""
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in values if value is not None}

    def failures(self, demand: Mapping[str, float | str]) -> tuple[Failure, ...]:
        """Every limit that `demand` (field name -> amount, in the field's unit) exceeds; empty when it fits.

        A field absent from `demand` takes nothing. Raises UserError when `demand` names a field no budget
        has.
        """
        for name in demand:
            if name not in UNITS:
                raise not_allowed("demand", name, tuple(UNITS))
        found = []
        for name, limit in self.limits().items():
            if name not in demand:
                continue
            needed = demand[name]
            if name == "privacy":
                if PRIVACY.index(str(needed)) > PRIVACY.index(limit):
                    found.append(Failure(name, limit, needed, UNITS[name]))
            elif math.isnan(float(needed)) or float(needed) > limit:
                found.append(Failure(name, limit, _round_up(float(needed), limit), UNITS[name]))
        return tuple(found)

    def fits(self, demand: Mapping[str, float | str]) -> bool:
        """True when `demand` exceeds no limit."""
        return not self.failures(demand)

    def require(self, demand: Mapping[str, float | str], what: str = "this plan") -> None:
        """Raises BudgetError naming every failed field when `demand` does not fit."""
        failed = self.failures(demand)
        if failed:
            raise BudgetError(failed, what)

    def __str__(self) -> str:
        return ", ".join(f"{k}={_shown(v)}" for k, v in self.limits().items()) or "no limits"


class BudgetError(UserError):
    """A plan that cannot fit, refused before work starts. `failures` holds every failed field; `field`,
    `given` and `nearest` name the first, as `--json` prints it; `nearest_budget` maps each failed field to a
    value that would do."""

    def __init__(self, failures: Sequence[Failure], what: str = "this plan") -> None:
        if not failures:
            raise ValueError("a BudgetError needs at least one failure")
        first = failures[0]
        said = "; ".join(str(failure) for failure in failures)
        super().__init__(
            f"{what} does not fit the budget: {said}.",
            field=first.field,
            given=first.limit,
            nearest=first.needed,
        )
        self.failures = tuple(failures)
        self.nearest_budget: dict[str, float | str] = {failure.field: failure.needed for failure in failures}

    def record(self) -> dict[str, Any]:
        """The error as `--json` prints it, with all failures."""
        return {**super().record(), "failures": [dataclasses.asdict(failure) for failure in self.failures]}


def _round_up(value: float, limit: float) -> float:
    """`value` rounded upwards to three significant digits, always above `limit`; infinity and NaN stay."""
    if not math.isfinite(value) or value <= 0:
        return value
    digits = 2 - math.floor(math.log10(value))
    scale = 10.0**digits
    rounded = round(math.ceil(value * scale * (1 - 1e-12)) / scale, max(digits, 0))
    return rounded if rounded >= value and rounded > limit else value


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"
