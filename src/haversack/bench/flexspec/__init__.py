"""The bench of FlexSpec, its online half: a device drafts, a server verifies.

exactness.py: the server's plain tokens, sampling's distribution, memory given back. control.py: the length of
rounds over changing channels and within an energy budget, in simulated time. speed.py: two processes over an
emulated link, by the clock, and bytes.
"""

from __future__ import annotations

from haversack.bench.flexspec import control, exactness, speed
from haversack.bench.flexspec._bench import bench

__all__ = ["bench", "control", "exactness", "speed"]
