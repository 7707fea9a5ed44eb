"""Plans, what is known of each, and the choice among them: pure data and pure functions.

A plan is one choice per slot. A candidate is a plan with what prediction or measurement says of it. The front
holds the candidates that no other beats in quality, memory, storage and speed at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from haversack.core.budget import Budget, BudgetError, Failure

OBJECTIVES = ("quality", "speed", "size")
# Losses that differ by less than this share count as equal: text of a few thousand tokens shows no less.
SAME_QUALITY = 0.002
OUTPUT_TOKENS = 32  # a job, where one is needed to compare speeds: a prompt, then so many tokens


@dataclass(frozen=True, order=True)
class Plan:
    """One choice per slot, and the types that numbers travel in.

    `precision`, `structure` and `architecture` shape the pack; the rest is how it is run and can be overruled
    there.
    """

    precision: str
    structure: str = "none"
    architecture: str = "none"
    activations: str = "f32"
    residency: str = "mapped"
    cache_type: str = "f32"

    def record(self) -> dict[str, str]:
        """As pack.json and `--json` hold it."""
        return {
            "precision": self.precision,
            "structure": self.structure,
            "architecture": self.architecture,
            "activations": self.activations,
            "residency": self.residency,
            "cache_type": self.cache_type,
        }

    @property
    def label(self) -> str:
        """What differs between plans, in a few words."""
        structure = () if self.structure == "none" else (self.structure,)
        return " ".join((self.precision, *structure, self.activations, self.residency, self.cache_type))

    @property
    def stored(self) -> tuple[str, str]:
        """What shapes the pack: plans that share it share a pack."""
        return self.precision, self.structure


@dataclass(frozen=True)
class Candidate:
    """A plan and what is known of it.

    `bits`: bits a weight, scales and padding included. `quality`: bits per byte of the evaluation text, None
    where nothing of the kind was measured yet; `loss`: its increase over the f32 plan as a share. `ram_mib`,
    `storage_mib`, `latency_ms` and `energy_mj` are what the budget judges. `here`: tokens a second measured
    on this machine; `device`: predicted on the device. `calibrated`: packing it takes calibration text and
    time.
    """

    plan: Plan
    bits: float
    loss: float
    storage_mib: float
    ram_mib: float
    device: float
    latency_ms: float
    energy_mj: float
    quality: float | None = None
    here: float | None = None
    source: str = "predicted"
    calibrated: bool = False
    seconds: float | None = None

    @property
    def job_ms(self) -> float:
        """Predicted time on the device of a job: the first output, then OUTPUT_TOKENS more."""
        return self.latency_ms + 1e3 * OUTPUT_TOKENS / self.device

    def demand(self) -> dict[str, float | str]:
        """What the plan takes of each budget field; nothing leaves the device."""
        return {
            "ram_mib": self.ram_mib,
            "storage_mib": self.storage_mib,
            "latency_ms": self.latency_ms,
            "energy_mj": self.energy_mj,
            "max_quality_loss": max(self.loss, 0.0),
            "uplink_kib": 0.0,
            "cost_usd": 0.0,
            "privacy": "device",
        }

    def record(self, budget: Budget) -> dict[str, Any]:
        """As `pack --json` prints it."""
        return {
            "plan": self.plan.record(),
            "source": self.source,
            "bits": round(self.bits, 3),
            "quality": {
                "bits_per_byte": None if self.quality is None else round(self.quality, 5),
                "loss": round(self.loss, 5),
            },
            "storage_mib": round(self.storage_mib, 2),
            "ram_mib": round(self.ram_mib, 2),
            "latency_ms": round(self.latency_ms, 1),
            "energy_mj": round(self.energy_mj, 1),
            "tokens_per_s": {
                "here": None if self.here is None else round(self.here, 2),
                "device_predicted": round(self.device, 2),
            },
            "fits": budget.fits(self.demand()),
        }


def feasible(candidates: Iterable[Candidate], budget: Budget) -> list[Candidate]:
    """Those that fit `budget`, in their order."""
    return [candidate for candidate in candidates if budget.fits(candidate.demand())]


def refusal(candidates: Sequence[Candidate], budget: Budget, what: str) -> BudgetError:
    """The error when none of `candidates` fits: every field that no plan meets, each with its smallest
    feasible value.

    When every field can be met alone but not all together, the fields that the nearest plan fails; nearest is
    the plan whose worst excess over the budget is smallest.
    """
    least: dict[str, float | str] = {}
    for candidate in candidates:
        for name, amount in candidate.demand().items():
            if name not in least or (not isinstance(amount, str) and amount < float(least[name])):
                least[name] = amount
    failed: tuple[Failure, ...] = budget.failures(least)
    if not failed:
        nearest = min(candidates, key=lambda candidate: excess(candidate, budget))
        failed = budget.failures(nearest.demand())
    return BudgetError(failed, what)


def excess(candidate: Candidate, budget: Budget) -> float:
    """The worst share by which `candidate` exceeds a limit of `budget`; 0 or less when it fits."""
    demand = candidate.demand()
    shares = [
        float(demand[name]) / max(float(limit), 1e-9) - 1.0
        for name, limit in budget.limits().items()
        if name in demand and not isinstance(limit, str)
    ]
    return max(shares, default=0.0)


def merit(candidate: Candidate, objective: str) -> tuple[float, ...]:
    """Smaller is better.

    Quality in steps of SAME_QUALITY, so that a difference too small to see decides nothing; between equals,
    what needs no calibration comes before memory, which no two measurements find the same.
    """
    quality = math.floor(max(candidate.loss, 0.0) / SAME_QUALITY)
    speed, extra = candidate.job_ms, float(candidate.calibrated)
    if objective == "speed":
        return (speed, quality, extra, candidate.ram_mib + candidate.storage_mib)
    if objective == "size":
        return (round(candidate.storage_mib, 1), quality, extra, candidate.ram_mib, speed)
    return (quality, speed, extra, candidate.ram_mib + candidate.storage_mib)


def ranked(candidates: Iterable[Candidate], objective: str) -> list[Candidate]:
    """Best first by `objective`; equal ones by name, so that chance never decides."""
    return sorted(candidates, key=lambda one: (*merit(one, objective), one.plan))


def choose(candidates: Sequence[Candidate], budget: Budget, objective: str) -> Candidate | None:
    """The best measured candidate that fits, or None."""
    measured = [candidate for candidate in candidates if candidate.source == "measured"]
    found = ranked(feasible(measured, budget), objective)
    return found[0] if found else None


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other candidate beats or equals in everything while beating it in something; by
    storage.
    """
    kept = [one for one in candidates if not any(dominates(other, one) for other in candidates)]
    return sorted(kept, key=lambda candidate: (candidate.storage_mib, candidate.ram_mib, candidate.plan))


def dominates(first: Candidate, second: Candidate) -> bool:
    """True when `first` is nowhere worse than `second` and somewhere better."""
    ours, theirs = ((one.loss, one.ram_mib, one.storage_mib, -one.device) for one in (first, second))
    return all(a <= b for a, b in zip(ours, theirs, strict=True)) and ours != theirs


def with_fitted_loss(candidates: Sequence[Candidate], noises: Mapping[Plan, float]) -> list[Candidate]:
    """Predicted losses anew from the measured ones: loss = k * noise, k by least squares.

    `noises` maps plans to the expected squared relative error of their weights and activations. Until a
    measured candidate shows a loss the predictions stay.
    """
    measured = [candidate for candidate in candidates if candidate.source == "measured"]
    against = sum(candidate.loss * noises[candidate.plan] for candidate in measured)
    if against <= 0:
        return list(candidates)
    slope = against / sum(noises[candidate.plan] ** 2 for candidate in measured)
    return [
        candidate
        if candidate.source == "measured"
        else replace(candidate, loss=slope * noises[candidate.plan])
        for candidate in candidates
    ]
