"""The bench object, the two models and the prompts.

The large model is `code` in 4 bits (the paper's are), the small one `code-draft`, distilled from it. Prompts
are 64 tokens of held-out packages, at places drawn by the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._harness import Bench, Run

I32 = npt.NDArray[np.int32]

FILES = (
    "bench/llmcad/*.py",
    "run/decode/*.py",
    "run/_tree_draft.py",
    "run/_token_tree.py",
    "run/_verify.py",
    "run/_draft_costs.py",
    "run/_drafting.py",
)

bench = Bench("llmcad", number=5, watches=FILES)

DRAFT = "code-draft"
RATIOS = (50, 200)
LENGTHS = (2, 4, 8, 16)
"""Of the linear drafts that are the baseline: it is the best of them, at every ratio."""
PROMPT = 64
LINEAR = {f"{length} in a row": f"linear-draft:length={length}" for length in LENGTHS}


def target() -> Path:
    """`code` in 4 bits, a group of 64 weights sharing a scale."""
    from haversack.bench.engine._models import code_pack

    return code_pack("round-to-nearest:bits=4,group=64")


def prompts(run: Run, count: int) -> list[I32]:
    """`count` prompts of 64 tokens from packages that neither model was trained on."""
    from haversack.bench.engine.quality import evaluation_text

    tokens = evaluation_text(run).tokens
    starts = np.random.default_rng(run.seed).integers(0, len(tokens) - PROMPT, count)
    return [np.asarray(tokens[start : start + PROMPT], np.int32) for start in starts]


def opened(decode: str, model: Path | None = None, **options: Any) -> Any:
    """An engine of the large model that decodes so."""
    from haversack.run import Engine

    options = {"activations": "int8-dynamic", **options}
    draft = None if decode == "one-by-one" else DRAFT
    return Engine.open(model or target(), decode=decode, draft=draft, **options)


def answered(engine: Any, prompt: I32 | Sequence[int], count: int, sampler: Any = None) -> Any:
    """The finished answer of `count` tokens to `prompt`."""
    from haversack.run import Limits, generate

    answer = generate(engine, prompt, Limits(count, end=()), sampler)
    for _ in answer:
        pass
    return answer
