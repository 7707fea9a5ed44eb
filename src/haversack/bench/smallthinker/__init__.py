"""The bench of SmallThinker: twins trained here that differ in where their routers stand, their experts read
matrix by matrix from a throttled store, and a real model's shape in a third of its memory.

quality.py: loss, zeros, the sparse layer, the predictor of output rows. exactness.py: the same tokens, bytes
of memory and of the cache. speed.py: reading before and behind attention, by the clock and by events.
real_size.py: OLMoE-1B-7B's shape beside llama.cpp.
"""

from __future__ import annotations

from haversack.bench.smallthinker import exactness, quality, real_size, speed
from haversack.bench.smallthinker._bench import bench

__all__ = ["bench", "exactness", "quality", "real_size", "speed"]
