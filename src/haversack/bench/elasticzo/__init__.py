"""The bench of ElasticZO: last layers by the way back, all others by two forward passes.

accuracy.py: LeNet-5 and a small PointNet beside full zeroth order and backpropagation, each at its best rate,
in floats and in integers. adapting.py: a trained network learns pictures turned by 45 degrees. memory.py: the
buffers that each way of training holds. integers.py: the sign of two losses, and what is not measured here.
"""

from __future__ import annotations

from haversack.bench.elasticzo import accuracy, adapting, integers, memory
from haversack.bench.elasticzo._bench import bench

__all__ = ["accuracy", "adapting", "bench", "integers", "memory"]
