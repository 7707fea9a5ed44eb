"""The bench object that the files of this folder add their rows to, and the ways to learn it compares."""

from __future__ import annotations

from haversack.bench._harness import Bench

FILES = (
    "bench/mobiletl/*.py",
    *(f"models/vision/{name}.py" for name in ("mobilenetv2", "mobilenetv3", "proxylessnas")),
    *(f"models/vision/_{name}.py" for name in ("counts", "folder", "names", "record")),
    *(f"models/vision/_{name}_torch.py" for name in ("inverted_residual", "lean", "pretraining")),
    "train/networks/mobilenet*.py",
    "train/parameters/mobiletl*.py",
    "train/parameters/tinytl*.py",
)
LEARNING = (
    *FILES,
    "train/gradient/backprop.py",
    "train/parameters/bias.py",
    "train/parameters/head.py",
)

bench = Bench("mobiletl", number=20, watches=FILES)

PLAIN = "act=exact,inner_norm=full"
"""Fine-tuning of the same blocks: norms learn with the statistics of their batch, activations go back
exactly; ReLU6 keeps a bit an element in either way, as the specification counts."""


def ours(blocks: int) -> str:
    """MobileTL in so many of the top blocks."""
    return f"mobiletl:blocks={blocks}"


def plain(blocks: int) -> str:
    """Fine-tuning of the same blocks."""
    return f"{ours(blocks)},{PLAIN}"
