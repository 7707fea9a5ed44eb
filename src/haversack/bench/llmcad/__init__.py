"""The bench of LLMCad: token trees beside plain decoding and beside chains of drafts.

exactness.py: the plain tokens in every combination, sampling's distribution, memory. costs.py: passes and
time by counting, a pass as long as 50 or 200 steps of the small model, with parts of the method off.
speed.py: the same by the clock, the large model read through slowed storage.
"""

from __future__ import annotations

from haversack.bench.llmcad import costs, exactness, speed
from haversack.bench.llmcad._bench import bench

__all__ = ["bench", "costs", "exactness", "speed"]
