"""Adapting a model to texts; in a family only above the anchor, so that its draft stays right.

Papers: "FlexSpec" (arXiv 2601.00644, 2026), whose rule for evolving targets this keeps; Hu et al.,
"LoRA" (arXiv 2106.09685, 2021) for what learns.
What is here: one choice a slot. `parameters` says what learns (lora:rank=8); the loss is that of the next
token, the way back is PyTorch's, the steps are AdamW's. Of a target that belongs to a family, by its own
family.json or by that of the draft given, only blocks above the anchor may change: a choice that touches the
anchor is refused before anything is trained, and the anchor of what is written has the family's hash. The
result is a checkpoint (`merged`) or a PEFT adapter (`adapter`).
Cost: a pass of the model over the text, and the way back through the blocks above the lowest that changes.
Limits: dense Llama, Mistral, Qwen2 and Qwen3; PyTorch (extra workshop).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from haversack.core import index
from haversack.core.budget import Budget
from haversack.core.errors import UserError, not_allowed
from haversack.core.memory import MemoryPlan
from haversack.core.progress import Progress
from haversack.models._adapter import adapted_matrices
from haversack.models._adapter_config import CONFIG
from haversack.models._family import FamilyEntry, declared_family, family_of, require_family
from haversack.models._hub_write import check_folder_goal
from haversack.run._source import Model, open_model, open_source
from haversack.train._slots import Adapting
from haversack.train._texts import Texts, texts_for
from haversack.train._training import (
    Learning,
    Report,
    finished,
    floats_only,
    memory_plan,
    torch_part,
    training_folder,
    weights_crc32,
)
from haversack.train.draft import FAMILY_FIELDS

SYSTEM = 42
FORMS = ("merged", "adapter")
MARKS = {"merged": "fit.json", "adapter": CONFIG}
"""The file that shows that an earlier run wrote a folder."""
LEARNING = Learning(steps=300, rows=8, rate=0.002)


@dataclass(frozen=True)
class Fitted:
    """A written version: its folder, the family it belongs to, the blocks that changed, what training did."""

    path: Path
    form: str
    family: FamilyEntry | None
    blocks: tuple[int, ...]
    report: Report
    memory: MemoryPlan = field(repr=False)

    def record(self) -> dict[str, Any]:
        """As `train fit --json` prints it."""
        family = self.family
        return {
            "output": str(self.path),
            "form": self.form,
            "family": None if family is None else {name: getattr(family, name) for name in FAMILY_FIELDS},
            "blocks": list(self.blocks),
            **self.report.record(),
        }


def fit(
    target: str | Path,
    texts: Sequence[Path] | Texts,
    goal: Path,
    *,
    parameters: str = "lora",
    family: str | Path | None = None,
    form: str = "merged",
    learning: Learning = LEARNING,
    budget: Budget | None = None,
    bar: Progress | None = None,
    checkpoint_seconds: float = 60.0,
    stop_after: int | None = None,
) -> Fitted | None:
    """Adapt `target` to `texts` and write the result at `goal`.

    `family`: a draft (or any model) of the family whose anchor must stay; `parameters`: a method of that
    slot. An interrupted training goes on from its last checkpoint when it is asked for again. `stop_after`
    ends after so many steps without writing (None is returned). Raises BudgetError before anything is
    trained, UserError for what does not go
    together or would touch an anchor, MissingExtraError without PyTorch.
    """
    if form not in FORMS:
        raise not_allowed("form", form, FORMS)
    model = open_model(target)
    adapted_matrices(model.architecture)
    check_folder_goal(goal, MARKS[form])
    floats_only(model, "adapting")
    belongs = family_for(model, family)
    above = 0 if belongs is None else belongs.anchor_layers
    method = cast(Adapting, index.create("train", "parameters", parameters))
    learned = method.learned_numbers(model.architecture, above)
    _required(model, above, parameters, learning, budget)
    part = torch_part("haversack.train.fit_torch", "training")
    texts = texts_for(model, texts, learning.length)
    facts = {
        "job": "fit",
        "parameters": str(method),
        "above": above,
        "form": form,
        "weights": weights_crc32(model),
        "texts": texts.crc32,
        **asdict(learning),
    }
    with training_folder(goal, facts) as folder:
        done = part.adapt(
            *(model, method, above, texts, learning, folder),
            goal=goal,
            form=form,
            family=belongs,
            bar=bar,
            checkpoint_seconds=checkpoint_seconds,
            stop_after=stop_after,
        )
        if done is None:
            return None
        finished(folder)
    report, blocks = done
    memory = planned(model, learned, learning, blocks)
    return Fitted(goal, form, belongs, blocks, report, memory)


def family_for(model: Model, other: str | Path | None) -> FamilyEntry | None:
    """The family whose anchor must stay: that of `other` where it is given, which must be the model's own;
    else the model's own, if it has one."""
    own = family_of(model.source, model.architecture)
    if other is None:
        return own
    source = open_source(other)
    found = declared_family(source)
    if found is None:
        raise UserError(
            f"{other} belongs to no family; give a draft made by haversack train draft.",
            field="family",
            given=str(other),
        )
    require_family(model.source, model.architecture, found, str(other))
    return found


def plan_of(
    target: str | Path,
    learning: Learning,
    parameters: str = "lora",
    family: str | Path | None = None,
    budget: Budget | None = None,
) -> MemoryPlan:
    """What `fit` would hold, by headers alone. Raises BudgetError, and UserError as `fit` does."""
    model = open_model(target)
    adapted_matrices(model.architecture)
    belongs = family_for(model, family)
    return _required(model, 0 if belongs is None else belongs.anchor_layers, parameters, learning, budget)


def _required(
    model: Model, above: int, parameters: str, learning: Learning, budget: Budget | None
) -> MemoryPlan:
    method = cast(Adapting, index.create("train", "parameters", parameters))
    changed = sorted({block for block, _, _ in method.chosen(model.architecture, above).values()})
    need = planned(model, method.learned_numbers(model.architecture, above), learning, changed)
    if budget is not None:
        budget.require({"ram_mib": need.total_mib}, f"this training ({need.total_bytes:,} bytes)")
    return need


def planned(model: Model, learned: int, learning: Learning, blocks: Sequence[int]) -> MemoryPlan:
    """Memory of the training of `learned` numbers in `blocks`."""
    passed = len(model.architecture.blocks) - min(blocks)
    return memory_plan(model.architecture, learned, learning.rows, learning.length, passed)
