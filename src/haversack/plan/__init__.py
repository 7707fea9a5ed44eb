"""The planner: enumerate, prune, predict, measure, choose."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Candidate": "haversack.plan._candidates",
    "Plan": "haversack.plan._candidates",
    "front": "haversack.plan._candidates",
    "ranked": "haversack.plan._candidates",
    "Job": "haversack.plan._job",
    "Outcome": "haversack.plan._job",
    "half_of_this_machine_mib": "haversack.plan._job",
    "pack_model": "haversack.plan._job",
    "Policy": "haversack.shrink._pipeline",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
