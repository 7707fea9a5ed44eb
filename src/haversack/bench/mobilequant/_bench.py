"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench

FILES = (
    "bench/mobilequant/*.py",
    "shrink/precision/*mobilequant*.py",
    "shrink/_transforms.py",
    "models/_blocks_torch.py",
    "models/_fake_quant.py",
    "run/forms/static_input.py",
    "kernels/products.py",
)

bench = Bench("mobilequant", number=8, watches=FILES)
