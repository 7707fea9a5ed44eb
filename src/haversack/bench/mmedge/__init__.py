"""The bench of MMEdge: answers from a camera and a microphone, encoded while they are sensed.

latency.py: pipelined beside blocking, by the clock. accuracy.py: aggregation beside pooling, easy and hard
recordings. skipping.py: the gate beside confidence alone. adaptive.py: the optimizer beside the best fixed
configuration while a load comes and goes; everything beside the largest model that blocks."""

from __future__ import annotations

from haversack.bench.mmedge import accuracy, adaptive, latency, skipping
from haversack.bench.mmedge._bench import bench

__all__ = ["accuracy", "adaptive", "bench", "latency", "skipping"]
