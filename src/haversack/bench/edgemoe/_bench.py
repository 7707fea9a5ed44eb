"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench

FILES = (
    "bench/edgemoe/*.py",
    "bench/_streaming.py",
    "core/expert_store.py",
    "core/storage.py",
    "run/_reader.py",
    "run/_shelf.py",
    "run/_eviction.py",
    "run/_expert_buffer.py",
    "run/_paths.py",
    "run/_prediction.py",
    "run/residency/edgemoe.py",
    "run/residency/_edgemoe_held.py",
    "run/residency/_store_held.py",
    "run/layers/mixture.py",
    "shrink/_expert_bits.py",
    "shrink/_expert_loss.py",
    "shrink/precision/edgemoe.py",
)

bench = Bench("edgemoe", number=4, watches=FILES)
"""What a mixture of experts gains when its experts are streamed EdgeMoE's way."""
