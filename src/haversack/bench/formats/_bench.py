"""The bench object that the files of this folder add their rows to, and the models that they share."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._harness import Bench
from haversack.bench._rows import Outcome, Outcomes, Unavailable
from haversack.bench.engine._bench import ENGINE_FILES
from haversack.bench.engine.parity import _cases, _checkpoint

FORMATS_FILES = (
    *("bench/formats/*.py", *ENGINE_FILES, "models/tokenizers/*.py"),
    *("formats/gguf.py", "formats/_gguf*.py", "formats/safetensors.py", "formats/sentencepiece.py"),
    *("models/_gguf*.py", "run/export/*.py"),
)
Answer = Callable[[Path, Path, Any], tuple[Any, list[int]]]
"""(checkpoint or pack, scratch folder, prompt) -> logits f32 [positions, vocabulary], greedy tokens."""

bench = Bench("formats", watches=FORMATS_FILES)


def needs(*packages: str) -> None:
    """Raises Unavailable, naming the first package that is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise Unavailable(f"{package} is not installed")


def drawn(family: str, scratch: Path) -> Iterator[tuple[str, Path, Any]]:
    """(name, checkpoint folder, prompt) of each parity case of the family; see bench/engine/parity.py."""
    cases = _cases()
    for name, (config, length) in cases.CASES.items():
        if config["model_type"] == family:
            folder = _checkpoint(scratch / name, config, cases.weights_of(name))
            yield name, folder, cases.draw_prompt(name, length)


def ours(model: Path, prompt: Any, decoded: int) -> tuple[Any, list[int]]:
    """The engine's answer in f32 activations, on the numbers that the weights stand for."""
    from haversack.run import Engine

    with Engine.open(model, activations="f32") as engine:
        cache = engine.cache(len(prompt) + decoded)
        cache.horizon = len(prompt)
        rows = [engine.step(prompt, cache=cache, want="all")[0]]
        tokens: list[int] = []
        for index in range(decoded):
            last = rows[-1]
            assert last is not None
            tokens.append(int(last[-1].argmax()))
            if index < decoded - 1:
                rows.append(engine.step(tokens[-1:], cache=cache)[0])
    return np.concatenate([row for row in rows if row is not None]), tokens


def difference(found: Any, expected: Any, tokens: list[int], same: list[int]) -> float:
    """Largest difference over the largest logit; infinite when the greedy tokens differ."""
    if tokens != same or found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def family_outcomes(prefix: str, families: tuple[str, ...], answer: Answer, decoded: int) -> Outcomes:
    """A row for each family: the worst of its cases, `answer` beside the engine."""
    found = {}
    for family in families:
        with tempfile.TemporaryDirectory() as scratch:
            errors = {}
            for name, folder, prompt in drawn(family, Path(scratch)):
                logits, tokens = answer(folder, Path(scratch) / f"{name}-out", prompt)
                expected, same = ours(folder, prompt, decoded)
                errors[name] = difference(logits, expected, tokens, same)
        differing = [name for name, error in errors.items() if error == float("inf")]
        note = f"{len(errors)} cases" + (
            f"; greedy tokens differ in {', '.join(differing)}" if differing else ""
        )
        found[f"{prefix}-{family}"] = Outcome.single(max(errors.values()), note=note)
    return found
