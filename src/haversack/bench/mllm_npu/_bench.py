"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench

FILES = (
    "bench/mllm_npu/*.py",
    "shrink/precision/mllm_npu.py",
    "shrink/precision/_mllm_npu_profile.py",
    "run/forms/shadow.py",
    "run/prefill/*.py",
    "kernels/shadow.py",
    "native/shadow.*",
)
SIMULATED = ("bench/mllm_npu/*.py", "simulate/npu_prefill.py", "run/prefill/_schedule.py")

bench = Bench("mllm-npu", number=36, watches=FILES)
