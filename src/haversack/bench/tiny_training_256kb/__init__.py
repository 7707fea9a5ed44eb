"""The bench of tiny training: memory to the bit, a step within 256 KB, accuracy on CIFAR-10.

memory.py: the published counts, and the planned arena. scaling.py: quantization-aware scaling beside its
absence and beside floats. updates.py: a sparse scheme beside whole layers. steady.py: integers to the bit,
products. emitted.py: the step as C. elsewhere.py: what cannot be measured here.
"""

from __future__ import annotations

from haversack.bench.tiny_training_256kb import elsewhere, emitted, memory, scaling, steady, updates
from haversack.bench.tiny_training_256kb._bench import bench

__all__ = ["bench", "elsewhere", "emitted", "memory", "scaling", "steady", "updates"]
