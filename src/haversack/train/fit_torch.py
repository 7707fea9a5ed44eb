"""Adapting in PyTorch: the loss of the next token, and what is written in the end.

Papers: as fit.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from haversack.models._adapter import WEIGHTS, Pair, merged_tensors
from haversack.models._adapter_config import adapter_config
from haversack.models._blocks_torch import PLAIN, Hooks
from haversack.models._family import FAMILY_FILE, FamilyEntry, family_json
from haversack.models._hub_write import config_text, write_folder
from haversack.run._source import Model
from haversack.train._losses_torch import next_token
from haversack.train._model_torch import FloatModel, report_of, run_trainer
from haversack.train._slots import AdapterInTraining, Adapting
from haversack.train._texts import Rows, Texts, held_out_rows
from haversack.train._training import Learning, Report
from haversack.train.fit import MARKS

HELD_OUT_ROWS = 16


class NextToken:
    """The loss of a step: what the model, as changed, says of its texts' next tokens, in nats."""

    def __init__(
        self, model: FloatModel, learned: AdapterInTraining, texts: Texts, learning: Learning
    ) -> None:
        self.model, self.learned = model, learned
        self.rows = Rows(texts.learned, learning.rows, learning.length, learning.seed)

    def of_rows(self, rows: Any, hooks: Hooks | None = None) -> Tensor:
        """Mean over the tokens of `rows` i64 [texts, n + 1]; `hooks` in the place of what learns."""
        model, first = self.model, self.learned.blocks[0]
        tokens = model.tokens(rows)
        with model.computing():
            low = model.below(tokens[:, :-1], first)
            top = model.through(low, model.architecture.blocks[first:], hooks or self.learned.hooks)
            hidden = model.normed(top)
        return next_token(hidden, model.head, tokens[:, 1:].flatten(), compute=model.compute)

    def loss(self, step: int) -> Tensor:
        """Of the texts of `step`."""
        return self.of_rows(self.rows.at(step))

    @torch.no_grad()
    def judged(self, rows: Any, hooks: Hooks | None = None) -> float:
        """Of held-out rows."""
        return float(np.mean([float(self.of_rows(row[None], hooks)) for row in rows]))


def adapt(
    model: Model,
    method: Adapting,
    above: int,
    texts: Texts,
    learning: Learning,
    folder: Path,
    *,
    goal: Path,
    form: str,
    family: FamilyEntry | None,
    **options: Any,
) -> tuple[Report, tuple[int, ...]] | None:
    """Train what `method` says and write the version at `goal`; None where `stop_after` ended it before."""
    target = FloatModel(model, learning.compute)
    learned = method.begin(model.architecture, above, learning.seed, target.device)
    lesson = NextToken(target, learned, texts, learning)
    rows = held_out_rows(texts.held_out, HELD_OUT_ROWS, learning.length)
    before = lesson.judged(rows, PLAIN)
    trainer, losses = run_trainer(learned.module, learning, folder, lesson.loss, muon=False, **options)
    if trainer.done_steps < learning.steps:
        return None
    with torch.no_grad():
        for name, value in learned.module.named_parameters():
            value.copy_(trainer.average[name])
    found = report_of(trainer, learning, losses, {"loss_before": before, "loss": lesson.judged(rows)})
    pairs = learned.pairs(trainer.average)
    facts = {"role": "version", "parameters": str(method), "steps": found.steps, "tokens": found.tokens}
    texts_of = {} if family is None else {FAMILY_FILE: family_json(family, **facts, **found.held_out)}
    if form == "adapter":
        write_adapter(goal, model, pairs, texts_of)
    else:
        said = json.dumps({**facts, "base": model.path.name, **found.held_out}, indent=1) + "\n"
        source: Any = model.source
        texts_of |= {"config.json": config_text(source.config), MARKS["merged"]: said}
        write_folder(goal, merged_tensors(source, model.architecture, pairs), texts_of, carry=model.path)
    return found, learned.blocks


def write_adapter(goal: Path, model: Model, pairs: Mapping[str, Pair], texts: Mapping[str, str]) -> None:
    """`pairs` as a PEFT adapter in the folder `goal`, in f32."""
    first = next(iter(pairs.values()))
    modules = sorted({name.removesuffix(".weight").rpartition(".")[2] for name in pairs})
    blocks = sorted({pair.block for pair in pairs.values()})
    alpha = first.scale * first.rank
    config = adapter_config(str(model.path), first.rank, alpha, modules, blocks)
    halves = [
        (f"base_model.model.{name.removesuffix('.weight')}.lora_{half}.weight", values)
        for name, pair in pairs.items()
        for half, values in (("A", pair.first), ("B", pair.second))
    ]

    def tensors() -> Any:
        for name, values in halves:
            data = np.ascontiguousarray(values, "<f4")
            yield name, "f32", data.shape, data.nbytes, lambda data=data: [data.data.cast("B")]

    write_folder(goal, tensors(), {**texts, MARKS["adapter"]: config}, weights=WEIGHTS)
