"""Whole models beside `transformers`, family by family: every case of tests/models/record.py, prompt and 32
steps.

Live where PyTorch and transformers are installed, else against the tracked recordings. The cases draw
weights so that every tensor matters and prompts longer than windows; tests/models/test_parity.py shows that
a changed config field fails the same bar.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench._store import source_root
from haversack.bench.engine._bench import ENGINE_FILES, bench

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "stablelm",
    "gpt2",
    "opt",
)


def _cases() -> ModuleType:
    """tests/models/record.py of the source tree. Raises Unavailable in an installed package."""
    root = source_root()
    path = root / "tests" / "models" / "record.py" if root else None
    if path is None or not path.is_file():
        raise Unavailable("the cases and recordings are in the source tree, and this is an installed package")
    spec = importlib.util.spec_from_file_location("haversack_parity_cases", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _checkpoint(folder: Path, config: dict[str, Any], weights: dict[str, Any]) -> Path:
    from haversack.formats.safetensors import write_safetensors

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
    write_safetensors(
        folder / "model.safetensors", [(name, "f32", a.shape, a.data) for name, a in arrays.items()]
    )
    return folder


def _answer(model: Path, prompt: Any, decoded: int) -> tuple[Any, list[int]]:
    """Logits f32 [prompt + decoded - 1, vocabulary] and the greedy tokens of our engine."""
    from haversack.run import Engine

    with Engine.open(model) as engine:
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


def _differences(cases: ModuleType, family: str, live: bool) -> Iterator[tuple[str, float, bool]]:
    """(case, largest difference over the largest logit, greedy tokens identical) for the family's cases."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, (config, length) in cases.CASES.items():
            if config["model_type"] != family:
                continue
            weights = cases.weights_of(name)
            prompt = cases.draw_prompt(name, length)
            found, tokens = _answer(_checkpoint(Path(scratch) / name, config, weights), prompt, cases.DECODED)
            if live:
                logits, expected = cases.reference(config, weights, prompt, cases.DECODED)
                error = float(np.abs(found - logits).max() / np.abs(logits).max())
                yield name, error, tokens == list(expected)
            else:
                stored = np.load(cases.RECORDINGS / f"{name}.npz")
                ours = found[stored["rows"]][:, stored["columns"]]
                error = float(np.abs(ours - stored["logits"]).max() / stored["largest"].max())
                yield name, error, tokens == stored["tokens"].tolist()


@bench.measure(
    *[
        Row(
            f"parity-{family}",
            f"{family} in f32 equals transformers over prompt and 32 decoded steps, greedy tokens identical: "
            "largest difference over the largest logit",
            "relative",
            "quality",
            Bar("<=", 1e-4),
            judged="ours",
        )
        for family in FAMILIES
    ],
    seconds=90,
    watches=ENGINE_FILES,
)
def parity(run: Run) -> Outcomes:
    cases = _cases()
    live = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    found = {}
    for family in FAMILIES:
        results = list(_differences(cases, family, live))
        differing = [name for name, _, same in results if not same]
        worst = max(error for _, error, _ in results) if not differing else float("inf")
        against = "transformers, live" if live else "recordings of transformers"
        note = f"{len(results)} cases against {against}"
        if differing:
            note += f"; greedy tokens differ in {', '.join(differing)}"
        found[f"parity-{family}"] = Outcome.single(worst, note=note)
    return found
