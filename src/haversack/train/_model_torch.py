"""A float checkpoint as PyTorch tensors, and the ways through it that training takes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from haversack.core.errors import DamagedFileError, UserError
from haversack.models._architecture import Block
from haversack.models._blocks_torch import PLAIN, Hooks, block_forward, embed, norm_forward
from haversack.models._train_loop_torch import Schedule, Trainer, keep_freed_memory
from haversack.run._source import Model
from haversack.run.export._tensors import numbers
from haversack.train._training import Learning, Report

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class FloatModel:
    """The tensors of `model` without gradients: in f32, matrices (but the embedding) in the numbers of
    `compute`, on the device `where` (default: `device`). Raises UserError for numbers that are not finite.
    """

    def __init__(self, model: Model, compute: str = "f32", where: torch.device | None = None) -> None:
        self.model, self.architecture = model, model.architecture
        self.device, self.compute = where or device(), DTYPES[compute]
        self.weights: dict[str, Tensor] = {}
        for name, shape in self.architecture.tensors().items():
            values = np.concatenate([piece.reshape(-1) for piece in numbers(model.source, name)])
            if not np.isfinite(values).all():
                raise UserError(f"{name} holds weights that are not finite.", field="model", given=name)
            tensor = torch.from_numpy(values.reshape(shape)).to(self.device)
            kept = len(shape) != 2 or name == self.architecture.embedding
            self.weights[name] = tensor if kept else tensor.to(self.compute)
        self.head = self.weights[self.architecture.head.weight].to(self.compute)
        """The output matrix [vocabulary, width]."""

    def computing(self) -> Any:
        """The block in which products are taken in the numbers of `compute`."""
        if self.compute == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.compute)

    def tokens(self, rows: Any) -> Tensor:
        """Token numbers where the weights are."""
        return torch.from_numpy(np.ascontiguousarray(rows, np.int64)).to(self.device)

    @torch.no_grad()
    def below(self, tokens: Tensor, blocks: int) -> Tensor:
        """Hidden states [texts, n, width] after the lowest `blocks`, which do not learn."""
        return self.through(embed(self.architecture, tokens, self.weights), self.architecture.blocks[:blocks])

    def through(
        self,
        hidden: Tensor,
        blocks: Sequence[Block],
        hooks: Hooks = PLAIN,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Hidden states after `blocks`, which have `weights` (default: the model's)."""
        for block in blocks:
            hidden = block_forward(block, hidden, self.weights if weights is None else weights, hooks)
        return hidden

    def normed(self, hidden: Tensor) -> Tensor:
        """What meets the output matrix, flat: [texts x n, width]."""
        norm = self.architecture.final_norm
        found = hidden if norm is None else norm_forward(norm, hidden.float(), self.weights)
        return found.flatten(0, 1)


def run_trainer(
    module: nn.Module, learning: Learning, folder: Any, loss_of_step: Any, *, muon: bool, **options: Any
) -> tuple[Trainer, list[float]]:
    """Train `module` to the end of its schedule, from the checkpoint in `folder` where there is one.

    `options`: bar (a Progress), checkpoint_seconds, stop_after. Returns the trainer, whose `average` is what
    was learned, and the losses of this run's steps. Raises DamagedFileError for a checkpoint that does not
    hold, UserError for a loss that is not finite.
    """
    if learning.threads is not None:
        torch.set_num_threads(learning.threads)
    keep_freed_memory()
    schedule = Schedule(
        steps=learning.steps,
        matrix_rate=learning.matrix_rate,
        other_rate=learning.rate,
        warm_up_steps=min(learning.warm_up_steps, learning.steps),
        matrix_decay=0.0,
    )
    trainer = Trainer(module, schedule, folder, learning.half_life_steps, muon=muon)
    try:
        trainer.resume()
    except Exception as error:
        advice = f"Remove {folder} to start anew."
        raise DamagedFileError(
            folder / "state.pt", "it is no state of this training", advice=advice
        ) from error
    bar = options.pop("bar", None)
    if bar is not None:
        bar.advance(trainer.done_steps)
    losses: list[float] = []

    def report(said: Mapping[str, Any]) -> None:
        losses.append(float(said["loss"]))
        if bar is not None:
            bar.advance(label=f"training, loss {losses[-1]:.3f}")

    try:
        trainer.run(loss_of_step, report=report, **options)
    except FloatingPointError as error:
        raise UserError(f"{error}.", field="rate", given=learning.rate) from error
    return trainer, losses


def report_of(
    trainer: Trainer, learning: Learning, losses: Sequence[float], held_out: Mapping[str, float]
) -> Report:
    """What a finished training did."""
    tenth = max(1, len(losses) // 10)
    edges = (float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))) if losses else (0.0, 0.0)
    steps = trainer.done_steps
    return Report(steps, steps * learning.rows * learning.length, edges, dict(held_out), trainer.seconds)
