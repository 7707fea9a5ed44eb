"""The bench of AoE: rendered days with exact truth, from the camera around a neck to the server's store.

upload.py: clips pushed while client and server are killed and requests are lost. edge.py: what the agent
keeps of a day beside recording everything, a motion trigger and a duty cycle, and how fast it is. vision.py:
calibration, trajectory, hands and actions beside the truth. curate.py: planted bad clips, and a policy
trained on what is left. interop.py: exports beside a reader that is not their writer. scale.py: 2,000 hours
in the queue.
"""

from __future__ import annotations

from haversack.bench.aoe import curate, edge, interop, scale, upload, vision
from haversack.bench.aoe._bench import bench

__all__ = ["bench", "curate", "edge", "interop", "scale", "upload", "vision"]
