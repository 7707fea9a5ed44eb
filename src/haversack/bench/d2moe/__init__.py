"""The bench of D2MoE: a small mixture of experts, trained here, whose experts are nested bits read plane by
plane for many texts at once.

planes.py: what nesting costs in bytes and error. scheduling.py: orders of planes in simulated time.
routing.py: what bit routers gain over other choices of the same bits. speed.py: throughput beside separate
copies, 4 bits on demand and EdgeMoE. exactness.py: the same tokens and the same bytes of memory, whatever is
streamed how.
"""

from __future__ import annotations

from haversack.bench.d2moe import exactness, planes, routing, scheduling, speed
from haversack.bench.d2moe._bench import bench

__all__ = ["bench", "exactness", "planes", "routing", "scheduling", "speed"]
