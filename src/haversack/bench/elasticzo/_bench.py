"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench

FILES = (
    "bench/elasticzo/*.py",
    "train/gradient/_spsa.py",
    "train/gradient/zeroth.py",
    "train/gradient/elasticzo.py",
    "train/gradient/elasticzo_int8.py",
    "train/_niti.py",
    "train/networks/_layers.py",
    "train/networks/layered.py",
    "train/networks/integers.py",
)

bench = Bench("elasticzo", number=31, watches=FILES)
