"""The bench object that the files of this folder add their rows to, and the published schemes."""

from __future__ import annotations

from pathlib import Path

from haversack.bench._harness import Bench
from haversack.bench._spelling_cnn import data
from haversack.train.parameters.sparse import Scheme

FILES = (
    "bench/tiny_training_256kb/*.py",
    "formats/mcu_pickle.py",
    "formats/_plain_pickle.py",
    "models/graph/*.py",
    "train/parameters/sparse.py",
    "train/parameters/_sparse_*.py",
    "train/precision/int8_qas.py",
    "train/gradient/backprop.py",
    "train/networks/_graph.py",
)

bench = Bench("tiny-training-256kb", number=23, watches=FILES)

MODELS = {"mcunet": "mcunet-5fps", "mbv2": "mbv2-w0.35", "proxyless": "proxyless-w0.3"}
CONVOLUTIONS = {"mcunet": 42, "mbv2": 51, "proxyless": 60}
MAIN = "mcunet"

PUBLISHED: dict[str, dict[str, tuple[Scheme, float]]] = {
    "mcunet": {
        "49": (Scheme(20, (23, 24, 27, 30, 33, 39), (0, 0.25, 0.5, 0.5, 0, 0)), 49.75),
        "74": (Scheme(21, (21, 23, 24, 26, 27, 30), (1, 0, 1, 0, 0.5, 1)), 74.81),
        "100": (Scheme(22, (21, 24, 27, 30, 36, 39), (1, 1, 1, 1, 0.125, 0.25)), 99.84),
        "124": (Scheme(24, (21, 24, 27, 30, 33, 39), (0.25, 1, 1, 1, 0.5, 0.5)), 124.97),
        "148": (Scheme(23, (21, 24, 27, 30, 36, 39), (1, 1, 1, 1, 1, 0.5)), 148.41),
        "last-6": (Scheme.last(6, 42), 276.34),
        "last-12": (Scheme.last(12, 42), 448.05),
        "all-biases": (Scheme(42), 121.28),
        "full": (Scheme.last(42, 42), 1400.39),
    },
    "mbv2": {
        "99": (
            Scheme(25, (27, 30, 33, 36, 39, 42, 45, 48), (1, 1, 1, 1, 1, 0.125, 0.5, 1)),
            99.41,
        ),
        "full": (Scheme.last(51, 51), 1306.44),
    },
    "proxyless": {
        "98": (
            Scheme(25, (36, 39, 42, 45, 48, 51, 54, 57), (1, 0.5, 1, 1, 0.25, 0.5, 1, 1)),
            98.53,
        ),
        "full": (Scheme.last(60, 60), 1210.73),
    },
}
"""Scheme and KiB of one example, by network and name."""


def model_file(model: str) -> Path:
    """The checkpoint of a network. Raises Unavailable where it is absent."""
    return data(Path("models") / "mcu" / f"{MODELS[model]}.pkl")
