"""The bench `serving`: what it costs to answer others.

constrained.py: JSON by schema, always valid, and what it costs.
"""

from __future__ import annotations

from haversack.bench.serving import constrained
from haversack.bench.serving._bench import bench

__all__ = ["bench", "constrained"]
