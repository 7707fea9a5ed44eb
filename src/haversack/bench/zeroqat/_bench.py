"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench

FILES = (
    "bench/zeroqat/*.py",
    "train/fit_quantized.py",
    "train/gradient/zeroqat.py",
    "train/gradient/_zeroqat*.py",
    "train/gradient/_spsa.py",
)

bench = Bench("zeroqat", number=24, watches=FILES)
