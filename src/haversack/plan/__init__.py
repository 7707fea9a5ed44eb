"""The planner: enumerate, prune, predict, measure, choose."""

from __future__ import annotations

from haversack.core._names import lazily

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

__getattr__, __dir__ = lazily(__name__, globals(), _PUBLIC)
