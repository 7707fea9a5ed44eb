"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench

FILES = (
    "bench/smallthinker/*.py",
    "bench/_streaming.py",
    "core/expert_store.py",
    "core/storage.py",
    "kernels/neurons.py",
    "models/language/smallthinker.py",
    "models/language/smallthinker_torch.py",
    "run/_expert_buffer.py",
    "run/_head_predictor.py",
    "run/_reader.py",
    "run/_shelf.py",
    "run/_window.py",
    "run/decode/sparse_head.py",
    "run/layers/_by_matrix.py",
    "run/layers/mixture.py",
    "run/residency/_edgemoe_held.py",
    "run/residency/_store_held.py",
    "run/residency/_smallthinker_held.py",
    "run/residency/smallthinker.py",
    "shrink/_head_predictor.py",
    "shrink/_head_predictor_torch.py",
    "shrink/precision/q4_0.py",
    "shrink/structure/_reglu.py",
)

bench = Bench("smallthinker", number=49, watches=FILES)
"""What a router before attention, ReGLU experts and a cache of matrices gain."""
