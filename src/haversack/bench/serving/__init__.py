"""The bench `serving`: what it costs to answer others.

clients.py: many clients against one, prompts that begin alike. endurance.py: what a crowd leaves behind,
memory against its plan, answers against those given alone. constrained.py: JSON by schema, always valid, and
what it costs.
"""

from __future__ import annotations

from haversack.bench.serving import clients, constrained, endurance
from haversack.bench.serving._bench import bench

__all__ = ["bench", "clients", "constrained", "endurance"]
