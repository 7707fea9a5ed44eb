"""The bench of SEAOTTER: what a picture is worth to a task, for the bytes that the sensor sent.

accuracy.py: a codec trained and tuned on the left of fifteen photographs, judged on their right, beside
direct decoding, a standard JPEG of it, JPEG, WebP and AVIF. sandwich.py: decibels and counted bits of the
shipped codec's colours and tables, prefixes, files that open. speed.py: encoding and reading beside AVIF."""

from __future__ import annotations

from haversack.bench.seaotter import accuracy, sandwich, speed
from haversack.bench.seaotter._bench import bench

__all__ = ["accuracy", "bench", "sandwich", "speed"]
