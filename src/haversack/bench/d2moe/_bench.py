"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench

FILES = (
    "bench/d2moe/*.py",
    "bench/_streaming.py",
    "bench/edgemoe/_toy.py",
    "core/expert_store.py",
    "core/_expert_file.py",
    "core/storage.py",
    "kernels/nested.py",
    "native/nested.cpp",
    "run/_reader.py",
    "run/_shelf.py",
    "run/_expert_buffer.py",
    "run/_levels.py",
    "run/_pool.py",
    "run/forms/nested.py",
    "run/layers/mixture.py",
    "run/layers/_by_plane.py",
    "run/residency/d2moe.py",
    "run/residency/_d2moe_held.py",
    "run/residency/_edgemoe_held.py",
    "run/residency/_store_held.py",
    "shrink/_bit_routers.py",
    "shrink/_bit_router_torch.py",
    "shrink/precision/_nested.py",
    "shrink/precision/d2moe.py",
    "shrink/precision/edgemoe.py",
)

bench = Bench("d2moe", number=27, watches=FILES)
"""What many texts at once gain when experts are nested bits that are read plane by plane."""
