"""The bench object."""

from __future__ import annotations

from haversack.bench._harness import Bench

FILES = ("bench/flexspec/*.py",)

bench = Bench("flexspec", number=42, watches=FILES)
