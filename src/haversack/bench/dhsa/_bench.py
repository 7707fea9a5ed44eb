"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench

FILES = (
    "bench/dhsa/*.py",
    "run/attention/dhsa.py",
    "run/attention/_predictor.py",
    "run/attention/_prompt.py",
    "run/attention/_selection.py",
    "train/boundaries.py",
    "train/boundaries_torch.py",
    "kernels/chosen.py",
    "kernels/chunks.py",
    "kernels/gaps.py",
    "native/base/chosen.cpp",
    "native/base/chunks.cpp",
    "native/gaps.cpp",
    "native/attend.cpp",
)

bench = Bench("dhsa", number=9, watches=FILES)
