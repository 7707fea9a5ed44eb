"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench

FILES = (
    "bench/r_sparse/*.py",
    "shrink/structure/r_sparse.py",
    "shrink/structure/cats.py",
    "shrink/structure/_row_sparse.py",
    "run/forms/row_sparse.py",
    "kernels/sparse.py",
)

bench = Bench("r-sparse", number=45, watches=FILES)
