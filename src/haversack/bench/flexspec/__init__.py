"""The bench of FlexSpec: one draft for all versions of a target.

training.py: what a draft with a frozen anchor keeps of its acceptance while the target evolves, beside drafts
of its size that do not share one.
"""

from __future__ import annotations

from haversack.bench.flexspec import training
from haversack.bench.flexspec._bench import bench

__all__ = ["bench", "training"]
