"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench

SHARED = ("bench/llms_over_networks/_bench.py", "bench/llms_over_networks/_models.py")
NETWORK = (*SHARED, "share/collaboration/_*.py", "core/link.py")
ROUTERS = (*SHARED, "share/query_routers.py", "share/learning_routers.py", "share/_query_features.py")

bench = Bench("llms-over-networks", number=40, watches=(*NETWORK, *ROUTERS))
