"""The bench of LLMs over networks: small models that were really trained, on tasks whose answers can be
checked, and the recorded answers of two large ones.

outcomes.py: query routers on RouteLLM's recorded outcomes. vertical.py: routing, cascades, long documents,
the choice of modalities, a link that is down. horizontal.py: votes, debates, topologies, swarms. learned.py:
a budget learned. sockets.py: the same answers over real sockets."""

from __future__ import annotations

from haversack.bench.llms_over_networks import horizontal, learned, outcomes, sockets, vertical
from haversack.bench.llms_over_networks._bench import bench

__all__ = ["bench", "horizontal", "learned", "outcomes", "sockets", "vertical"]
