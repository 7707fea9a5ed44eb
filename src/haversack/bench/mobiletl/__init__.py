"""The bench of MobileTL: half the memory of fine-tuning at about the same accuracy.

memory.py: bytes kept for the way back by block and by trained part, and the peak of a process. products.py:
multiplications of a step. accuracy.py: a backbone that was pretrained on half of CIFAR-10's classes learns
the others in every way, rates tuned, three seeds, with the front of accuracy and memory. gradients.py: how
far the signed Hard-Swish turns gradients.
"""

from __future__ import annotations

from haversack.bench.mobiletl import memory, products, accuracy, gradients  # isort: skip  # the order of a run
from haversack.bench.mobiletl._bench import bench

__all__ = ["accuracy", "bench", "gradients", "memory", "products"]
