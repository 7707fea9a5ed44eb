"""What the tests of parity share: the recordings, the engine's answer and how far it is from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from haversack.run import Engine

BAR = 1e-4
NAMES = sorted(path.stem for path in (Path(__file__).parent / "recordings").glob("*.npz"))


@dataclass
class Answer:
    logits: np.ndarray  # f32 [prompt + decoded - 1, vocabulary]
    tokens: list[int]


def answer(source: Any, prompt: np.ndarray, decoded: int, **options: Any) -> Answer:
    """The engine's logits and greedy tokens."""
    with Engine.open(source, **options) as engine:
        # The context bounds a cache; these tests go on beyond it, as the reference does.
        cache = engine.cache(len(prompt) + decoded)
        cache.horizon = len(prompt)
        rows = [engine.step(prompt, cache=cache, want="all")[0]]
        tokens: list[int] = []
        for index in range(decoded):
            tokens.append(int(rows[-1][-1].argmax()))
            if index < decoded - 1:
                rows.append(engine.step(tokens[-1:], cache=cache)[0])
    return Answer(np.concatenate(rows), tokens)


def recorded(record: Any, name: str) -> tuple[dict[str, Any], Any]:
    stored = np.load(record.RECORDINGS / f"{name}.npz")
    return json.loads(stored["config"].tobytes()), stored


def difference(found: Answer, stored: Any) -> float:
    """Largest difference to a recording over its largest logit, in the rows that `found` has."""
    rows = stored["rows"] < len(found.logits)
    ours = found.logits[stored["rows"][rows]][:, stored["columns"]]
    return float(np.abs(ours - stored["logits"][rows]).max() / stored["largest"].max())
