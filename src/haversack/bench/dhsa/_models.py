"""The recall model and its boundary predictor, kept by content; documents of either split; what is
answered."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._cache import cached
from haversack.bench._rows import Unavailable
from haversack.bench._store import content_hash
from haversack.bench.dhsa._records import Document, document

SEED = 0
TRAIN, TUNE, TEST = 1, 2, 3
"""First numbers of the seeds of documents: those that predictors learn from, that settings are chosen on, and
that rows are measured on."""
TAUGHT, TAUGHT_LENGTH, TAUGHT_SHARE, TAUGHT_BETWEEN = 64, 512, 0.4, 4
"""Documents that predictors learn from; nearly half of each asks about its records, so that attention shows
them."""
MODEL_FILES = ("bench/dhsa/_recall_torch.py", "bench/dhsa/_records.py", "models/_blocks_torch.py")
PREDICTOR_FILES = (*MODEL_FILES, "bench/dhsa/_models.py", "train/boundaries.py", "train/boundaries_torch.py")


TAUGHT_PASSES, TAUGHT_RATE = 8, 3e-3


def documents(split: int, count: int, length: int, seed: int = 0, **given: Any) -> list[Document]:
    """Documents of a split, with what `document` is given; other seeds give others."""
    return [document(np.random.default_rng([split, seed, index]), length, **given) for index in range(count)]


def asking(split: int, count: int, seed: int = 0) -> list[Document]:
    """Documents as predictors learn from them."""
    return documents(split, count, TAUGHT_LENGTH, seed, share=TAUGHT_SHARE, between=TAUGHT_BETWEEN)


@functools.cache
def recall_folder(say: Callable[[str], None] = print) -> Path:
    """The checkpoint folder of the recall model. Raises Unavailable without PyTorch."""
    try:
        torch_part = import_module("haversack.bench.dhsa._recall_torch")
    except ImportError:
        raise Unavailable("torch is not installed; run: pip install 'haversack[workshop]'") from None
    inputs = {"seed": SEED, "program": content_hash(MODEL_FILES)}
    return cached("dhsa-recall", inputs, lambda goal: torch_part.train(goal, SEED, say=say))


@functools.cache
def predictor_file(say: Callable[[str], None] = print) -> Path:
    """The recall model's boundary predictor, taught on documents of the training split."""
    from haversack.run.attention._predictor import FILE
    from haversack.train.boundaries import train_boundary_predictor

    folder = recall_folder(say)

    def make(goal: Path) -> None:
        say("teaching the boundary predictor")
        texts = [one.tokens for one in asking(TRAIN, TAUGHT)]
        train_boundary_predictor(
            folder, texts, passes=TAUGHT_PASSES, rate=TAUGHT_RATE, seed=SEED
        ).predictor.write(goal / FILE)

    inputs = {
        "model": folder.name,
        "program": content_hash(PREDICTOR_FILES),
    }
    return cached("dhsa-predictor", inputs, make) / FILE


def answered(attention: str, texts: Sequence[Document], say: Callable[[str], None] = print) -> float:
    """The share of the questions whose first word is the likeliest, when `texts` are read with
    `attention`."""
    from haversack.run._engine import Engine

    right = asked = 0
    with Engine.open(recall_folder(say), attention=attention) as engine:
        for text in texts:
            logits, _ = engine.step(text.tokens, cache=engine.cache(len(text.tokens)), want="all")
            assert logits is not None
            at = np.flatnonzero(text.first)
            right += int((logits[at - 1].argmax(axis=1) == text.tokens[at]).sum())
            asked += len(at)
    return right / asked


def sparse(mode: str, budget: int, say: Callable[[str], None] = print, **given: Any) -> str:
    """The attention `dhsa` in a mode, as all sides here share it: blocks of 64 queries, the nearest 64 keys
    and the first 16 always, and no tail, for the questions are what is asked."""
    options = {
        "mode": mode,
        "budget": budget,
        "query_block": 64,
        "local": 64,
        "sinks": 16,
        "tail": 0,
        **given,
    }
    if mode == "dhsa" and options.get("borders") != "fixed":
        options.setdefault("border_block", 1)
        options["predictor"] = predictor_file(say)
    return "dhsa:" + ",".join(f"{name}={value}" for name, value in options.items())
