"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench

FILES = (
    "bench/tz_llm/*.py",
    "formats/sealed.py",
    "formats/_sealed_versions.py",
    "run/residency/*.py",
    "run/_units.py",
    "run/_engine.py",
    "core/storage.py",
)
SIMULATED = ("bench/tz_llm/*.py", "simulate/*.py", "run/residency/_restoration.py", "run/residency/sealed.py")

bench = Bench("tz-llm", number=29, watches=FILES)
