"""The bench of Hera: agents whose every step is the device's or the cloud's.

household.py: a world whose searching mends itself and whose preparing does not. textworld.py: TextWorld's
cooking, coin and treasure games. speed.py: what a decision takes. All routers of a seed share agents,
tasks and chance."""

from __future__ import annotations

from haversack.bench.hera import household, speed, textworld
from haversack.bench.hera._bench import bench

__all__ = ["bench", "household", "speed", "textworld"]
