"""MLX-Transformers: one encoder in several frameworks, proved equal and timed side by side.

The benchmark that a person runs on checkpoints of their own, as `haversack compare`.

Paper: Benchmarking On-Device Machine Learning on Apple Silicon with MLX (arXiv 2510.18921).
What is here: its protocol (text lengths by batch sizes, tokens made once, a parity gate before any time) over
backends as plug-ins.
What we changed: results are forced inside the timer and checked by how time grows with tokens, since the
authors' own MLX cells were graph-building times; medians and 90th percentiles beside their mean of the
fastest; the first call apart; mean tokens of every cell; backends interleaved.
Limits: the last hidden states are compared and timed, no heads, so models compare with each other as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench.mlx_transformers_benchmark._backends import DEFAULT, backend
from haversack.bench.mlx_transformers_benchmark._grid import (
    BATCHES,
    ITERATIONS,
    LENGTHS,
    TOLERANCE,
    Cell,
    checked,
    measure_cell,
    open_backends,
    slopes,
)
from haversack.bench.mlx_transformers_benchmark._report import markdown
from haversack.core.measurement import machine

SYSTEM = 21


def compare(
    folder: Path,
    *,
    backends: Sequence[str] = DEFAULT,
    lengths: Sequence[int] = LENGTHS,
    batches: Sequence[int] = BATCHES,
    iterations: int = ITERATIONS,
    corpus: str | None = None,
    tolerance: float = TOLERANCE,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The record of one model, as `haversack compare --json` prints it: parity, cells, slopes, what was
    skipped, and the same as `markdown`.

    Raises UserError for a grid that cannot be measured, an unknown backend, a checkpoint that lacks tensors,
    texts longer than the positions, and (ParityError, before any time is taken) outputs that differ.
    """
    from haversack import kernels
    from haversack.models._calibration import default_text

    checked(lengths, batches, iterations)
    for name in backends:
        backend(name)
    text = default_text("evaluation")[:200_000] if corpus is None else corpus
    count = threads or kernels.threads()
    opened = open_backends(
        folder, backends, text, threads=count, tolerance=tolerance, characters=min(lengths), tell=tell
    )
    cells: list[Cell] = []
    if opened.ready:
        for length in lengths:
            for texts in batches:
                tell(f"{length} characters, batch {texts}")
                cells += measure_cell(opened, text, length, texts, iterations)
    tensors = opened.checkpoint.tensors.values()
    record: dict[str, Any] = {
        "model": folder.name,
        "architecture": opened.checkpoint.architecture.family,
        "parameters": sum(int(np.prod(array.shape)) for array in tensors),
        "threads": count,
        "machine": machine(),
        "parity": {
            name: {"difference": one.difference, "cosine": one.cosine, "exact": one.backend.exact}
            for name, one in opened.ready.items()
        },
        "skipped": dict(opened.skipped),
        "cells": [cell.record() for cell in cells],
        "slopes": {name: round(value, 4) for name, value in slopes(cells, max(batches)).items()},
    }
    page = markdown(record, cells) if cells else "No backend runs here.\n"
    return {**record, "markdown": page}
