"""What `haversack export --to safetensors` writes, loaded by transformers: its logits beside the engine's,
its size beside the numbers it holds.
"""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.engine._bench import SHRINK_FILES
from haversack.bench.engine._models import code_pack
from haversack.bench.engine.parity import FAMILIES
from haversack.bench.formats._bench import FORMATS_FILES, bench, difference, family_outcomes, needs, ours

INT4 = "round-to-nearest:bits=4,group=64"


def dense(model: Path, goal: Path) -> Path:
    """`model` as a checkpoint folder at `goal`."""
    from haversack.run._source import open_model
    from haversack.run.export import export

    export(open_model(model), "safetensors", goal)
    return goal


def theirs(folder: Path, prompt: Any) -> tuple[Any, list[int]]:
    """What transformers says of a checkpoint folder: logits f32 [n, vocabulary], the next token."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(prompt.astype(np.int64))[None]).logits[0].float().numpy()
    return logits, [int(logits[-1].argmax())]


@bench.measure(
    *[
        Row(
            f"safetensors-{family}",
            f"{family} exported as a dense checkpoint loads in transformers and says what the engine says: "
            "largest difference over the largest logit",
            "relative",
            "quality",
            Bar("<=", 1e-4),
            judged="ours",
        )
        for family in FAMILIES
    ],
    seconds=90,
)
def families(run: Run) -> Outcomes:
    needs("torch", "transformers")

    def answer(folder: Path, goal: Path, prompt: Any) -> tuple[Any, list[int]]:
        return theirs(dense(folder, goal), prompt)

    return family_outcomes("safetensors", FAMILIES, answer, 1)


@bench.measure(
    Row(
        "safetensors-code-int4",
        "`code` packed in int4, exported as the numbers it stands for, says in transformers what the engine "
        "says on the integers: largest difference over the largest logit",
        "relative",
        "quality",
        Bar("<=", 1e-4),
        judged="ours",
    ),
    Row(
        "safetensors-size",
        "that checkpoint over its tensors' bare bytes in f32: what the format adds",
        "MiB",
        "bytes",
        Bar("<=", 1.01),
    ),
    seconds=30,
    watches=(*FORMATS_FILES, *SHRINK_FILES),
)
def packed(run: Run) -> Outcomes:
    needs("torch", "transformers")
    from haversack.run._source import open_model

    pack = code_pack(INT4)
    prompt = np.random.default_rng(run.seed).integers(3, 4000, 96).astype(np.int32)
    with TemporaryDirectory() as scratch:
        folder = dense(pack, Path(scratch) / "out")
        logits, tokens = theirs(folder, prompt)
        size = (folder / "model.safetensors").stat().st_size
    expected, same = ours(pack, prompt, 1)
    shapes = open_model(pack).architecture.tensors().values()
    bare = 4 * sum(math.prod(shape) for shape in shapes)
    return {
        "safetensors-code-int4": Outcome.single(difference(logits, expected, tokens, same)),
        "safetensors-size": Outcome.single(
            size / 2**20, bare / 2**20, name="safetensors", against="bare numbers"
        ),
    }
