"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench

FILES = ("bench/aoe/*.py", "collect/*.py", "collect/stages/*.py", "core/_asgi.py")

bench = Bench("aoe", number=1, watches=FILES)
