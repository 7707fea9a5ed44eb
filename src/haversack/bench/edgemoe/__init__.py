"""The bench of EdgeMoE: a small mixture of experts, trained here, whose experts are read from a throttled
store.

speed.py: time a token beside experts loaded on demand, by the clock and by events. quality.py: bits under a
budget, and what the routers of later text do to predictions and to what is kept. exactness.py: the same
tokens and the same bytes of memory, whatever is streamed how. switch_base.py: the same of the paper's
smallest model at its real size, with drawn weights.
"""

from __future__ import annotations

from haversack.bench.edgemoe import exactness, quality, speed, switch_base
from haversack.bench.edgemoe._bench import bench

__all__ = ["bench", "exactness", "quality", "speed", "switch_base"]
