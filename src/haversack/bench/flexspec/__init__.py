"""The bench of FlexSpec: a device drafts, a server verifies, and one draft serves all versions of a target.

exactness.py: the server's plain tokens, sampling's distribution, memory given back. control.py: the length of
rounds over changing channels and within an energy budget, in simulated time. speed.py: two processes over an
emulated link, by the clock, and bytes. training.py: what a draft with a frozen anchor keeps of its acceptance
while the target evolves, beside drafts of its size that do not share one.
"""

from __future__ import annotations

from haversack.bench.flexspec import control, exactness, speed, training
from haversack.bench.flexspec._bench import bench

__all__ = ["bench", "control", "exactness", "speed", "training"]
