"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench
from haversack.bench._native import NATIVE_FILES

ENCODER_FILES = (
    "bench/mlx_transformers_benchmark/*.py",
    "kernels/*.py",
    *NATIVE_FILES,
    "models/language/_encoder.py",
    "models/language/bert.py",
    "models/language/roberta.py",
    "models/language/xlm_roberta.py",
    "run/_enc*.py",
    "run/_pooling.py",
    "run/_forward.py",
    "run/layers/*.py",
    "shrink/_encoder.py",
    "shrink/_pipeline.py",
    "shrink/precision/round_to_nearest.py",
)

bench = Bench("mlx-transformers-benchmark", number=21, watches=ENCODER_FILES)
