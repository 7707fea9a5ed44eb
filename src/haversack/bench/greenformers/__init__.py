"""The bench of Greenformers: low-rank weights and low-rank attention beside the dense model.

counts.py: parameters to the unit, from shapes alone. speed.py: BERT-base shapes, forward and training,
Linformer, memory, the cost of pre-training. accuracy.py: digits and source code classified. spelling.py:
real speech weights. packs.py: factors in packs, their cost in quality and in the engine.
"""

from __future__ import annotations

from haversack.bench.greenformers import accuracy, counts, packs, speed, spelling
from haversack.bench.greenformers._bench import bench

__all__ = ["accuracy", "bench", "counts", "packs", "speed", "spelling"]
