"""Packs in static int8 with shadows, made from models in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from haversack.core import index
from haversack.core.pack import PackWriter
from haversack.models._checkpoint import checkpoint
from haversack.models.language import read_architecture
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress

EVERYTHING = "mllm-npu:beyond=0.03,threshold=2,keep=1,alone=percentile"
"""Grids so narrow that every matrix of a drawn model has shadows, all of them executed."""


def shadow_pack(goal: Path, source: Any, precision: str = EVERYTHING, length: int = 32) -> Path:
    """`source` packed by mllm-npu, calibrated on drawn tokens."""
    architecture = read_architecture(source.config)
    method: Any = index.create("shrink", "precision", precision)
    texts = np.random.default_rng(8).integers(0, architecture.vocabulary, (2, length)).astype(np.int32)
    with PackWriter(goal) as writer:
        walk = LanguageWalk(architecture)
        compress(
            checkpoint(source, architecture),
            walk,
            method,
            writer,
            texts=texts,
            policy=Policy(),
            folder=goal.parent,
        )
        tokenizer = Path(str(source.path)) / "tokenizer.json"
        if tokenizer.is_file():
            writer.add_file("tokenizer.json", tokenizer)
        plan = {"precision": str(method), "activations": "int8-static"}
        writer.finish({"architecture": source.config, "plan": plan, "activations": "int8-static"})
    return goal
