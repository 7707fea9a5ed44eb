"""A GGUF file, for llama.cpp and what is built on it.

`--weights stored`: numbers go over as they are where GGUF has a type for them (F32, F16, BF16, Q8_0 for int8
in groups of 32, Q4_0 for int4 in any groups); what has none is written as the nearest and told. `f16` writes
every matrix as F16. Tokenizer and chat template are in the file. The work is in `models/_gguf_write.py`.
"""

from __future__ import annotations

from pathlib import Path

from haversack.core.errors import UserError
from haversack.core.memory import MIB, MemoryPlan
from haversack.core.progress import Progress
from haversack.models._gguf_write import write_gguf
from haversack.run._forms import forms_of
from haversack.run._memory import TOKENIZER_BYTES_A_TOKEN
from haversack.run._source import Model
from haversack.run.export._tensors import export_plan

LAYOUT = "file"
NAMES = ("*.gguf",)
WEIGHTS = ("stored", "f16")
TOKENIZER_MIB = 8


def planned(model: Model, weights: str) -> MemoryPlan:
    """Memory of the export: what all exports hold, and the tokenizer read and written.

    Raises UserError for a pack that keeps matrices in parts.
    """
    held = forms_of(model.source)
    for name, entry in held.items():
        raise UserError(
            f"{model.path} keeps {name} and {len(held) - 1} others as {entry['form']}, and GGUF has whole "
            "matrices only; export to safetensors, which makes one matrix of each.",
            field="to",
            given="gguf",
            nearest="safetensors",
        )
    tokenizer = TOKENIZER_MIB * MIB + 2 * TOKENIZER_BYTES_A_TOKEN * model.architecture.vocabulary
    return MemoryPlan((*export_plan(model).lines, ("tokenizer, read and written", tokenizer)))


def write(model: Model, goal: Path, weights: str, bar: Progress) -> tuple[str, ...]:
    """Write the file `goal`; returns what of the model is not as it was, in words."""
    return write_gguf(model, goal, dense=weights == "f16", bar=bar).changes
