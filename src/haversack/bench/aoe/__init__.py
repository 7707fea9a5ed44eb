"""The bench of AoE: rendered days with exact truth, from the camera around a neck to the server's store.

upload.py: clips pushed while client and server are killed and requests are lost. edge.py: what the agent
keeps of a day beside recording everything, a motion trigger and a duty cycle, and how fast it is. interop.py:
an export beside a reader that is not its writer. later.py: the bars whose parts are not built yet.
"""

from __future__ import annotations

from haversack.bench.aoe import edge, interop, later, upload
from haversack.bench.aoe._bench import bench

__all__ = ["bench", "edge", "interop", "later", "upload"]
