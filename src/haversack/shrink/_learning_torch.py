"""Learning through one block: its texts as tensors, its error, and steps that end well.

The error of a block is the mean square of (its output - what the float block gave), over the mean square of
the latter: 0 is perfect, 1 is an output of zeros.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from haversack.core.errors import UserError
from haversack.models._blocks_torch import Hooks, Point, block_forward, norm_forward
from haversack.shrink._precision import HessianSum, InputStatistics
from haversack.shrink._reconstruction import BlockTask
from haversack.shrink._rounding import F32

State = dict[str, Tensor]


class Lesson:
    """The texts of a task and its block as a function.

    `given`: "compressed" learns on what the compressed blocks before give, "float" on what the float ones do.
    `batch`: texts in a step.
    """

    def __init__(self, task: BlockTask, *, given: str, batch: int) -> None:
        self.task = task
        self.inputs = task.inputs if given == "compressed" else task.exact
        self.batch = batch
        self.weights = {name: torch.from_numpy(values) for name, values in task.weights.items()}
        squares = [float(np.square(self._target(i), dtype=np.float64).mean()) for i in range(self.count)]
        self.size = float(np.mean(squares)) or 1.0
        self._drawn = np.random.default_rng([task.seed, task.index])

    @property
    def count(self) -> int:
        """Texts."""
        return len(self.inputs)

    def batches(self) -> Iterator[Sequence[int]]:
        """The texts in an order drawn anew, `batch` at a time."""
        order = self._drawn.permutation(self.count)
        for start in range(0, self.count, self.batch):
            yield order[start : start + self.batch].tolist()

    def output(self, text: int, hooks: Hooks) -> Tensor:
        """What the block gives for the input of a text, [1, rows, width]."""
        return self.forward(self.inputs.read(text), hooks)

    def forward(self, piece: F32, hooks: Hooks) -> Tensor:
        """What the block gives for a piece, [1, rows, width]."""
        rows, listened = self._parts(piece)
        context = None if listened is None else torch.from_numpy(piece[listened].copy())[None]
        hidden = torch.from_numpy(piece[rows].copy())[None]
        view = self.task.view
        found = block_forward(
            self.task.record, hidden, self.weights, hooks, causal=view.causal, context=context
        )
        return found if view.norm is None else norm_forward(view.norm, found, self.weights, hooks)

    def error(self, texts: Sequence[int], hooks: Hooks) -> Tensor:
        """The block's error on `texts`, a number with a gradient."""
        if self.task.view.parts is None:  # texts of one length
            view = self.task.view
            hidden = torch.from_numpy(np.stack([self.inputs.read(index) for index in texts]))
            found = block_forward(self.task.record, hidden, self.weights, hooks, causal=view.causal)
            wanted = torch.from_numpy(np.stack([self._target(index) for index in texts]))
            return (found - wanted).square().mean() / self.size
        misses = [
            (self.output(index, hooks)[0] - torch.from_numpy(self._target(index).copy())).square().mean()
            for index in texts
        ]
        return torch.stack(misses).mean() / self.size

    def whole_error(self, hooks: Hooks) -> float:
        """The block's error on all texts."""
        total = 0.0
        with torch.no_grad():
            for start in range(0, self.count, self.batch):
                texts = range(start, min(start + self.batch, self.count))
                total += float(self.error(texts, hooks)) * len(texts)
        return total / self.count

    def sample(self, names: Collection[str], rows: int) -> dict[str, F32]:
        """At most `rows` inputs f32 [rows, columns] of each matrix in `names`, spread over the texts, as
        the block in float is given them."""
        hooks = _Keeping(names, -(-rows // self.count))
        with torch.no_grad():
            for index in range(self.count):
                self.output(index, hooks)
        return {name: np.concatenate(found)[:rows] for name, found in hooks.found.items()}

    def statistics(self, name: str, hooks: Hooks) -> InputStatistics:
        """The mean of x x^T over every input x of the matrix `name`, the block being as `hooks` make it."""
        total = HessianSum(self.weights[name].shape[1])
        adding = _Adding(name, total, hooks)
        with torch.no_grad():
            for index in range(self.count):
                self.output(index, adding)
        return total.finish()

    def _parts(self, piece: F32) -> tuple[slice, slice | None]:
        parts = self.task.view.parts
        return (slice(None), None) if parts is None else parts(piece)

    def _target(self, text: int) -> F32:
        piece = self.task.targets.read(text)
        return piece[self._parts(piece)[0]]


class _Keeping(Hooks):
    """Keeps `each` inputs of every text for some matrices."""

    def __init__(self, names: Collection[str], each: int) -> None:
        self.names, self.each = names, each
        self.found: dict[str, list[F32]] = {}

    def activation(self, point: Point, tensor: Tensor) -> Tensor:
        if point.place == "input" and point.name in self.names:
            rows = tensor.flatten(0, -2)
            places = torch.linspace(0, len(rows) - 1, min(self.each, len(rows))).long()
            self.found.setdefault(point.name, []).append(rows[places].numpy().copy())
        return tensor


class _Adding(Hooks):
    """Adds up the inputs of one matrix, in a block that other hooks change."""

    def __init__(self, name: str, total: HessianSum, inner: Hooks) -> None:
        self.name, self.total, self.inner = name, total, inner

    def weight(self, name: str, tensor: Tensor) -> Tensor:
        return self.inner.weight(name, tensor)

    def activation(self, point: Point, tensor: Tensor) -> Tensor:
        tensor = self.inner.activation(point, tensor)
        if point == (self.name, "input"):
            self.total.add(tensor.flatten(0, -2).numpy())
        return tensor


def step(optimizer: Any, loss: Tensor) -> bool:
    """One step of `optimizer`; False, and none taken, where the loss or a gradient is not finite."""
    optimizer.zero_grad(set_to_none=True)
    if not math.isfinite(float(loss.detach())):
        return False
    loss.backward()  # type: ignore[no-untyped-call]
    for group in optimizer.param_groups:
        for each in group["params"]:
            if each.grad is not None and not bool(torch.isfinite(each.grad).all()):
                return False
    optimizer.step()
    return True


class Best:
    """The state of least error so far; what learning ends with, however it ends."""

    def __init__(self, task: BlockTask, method: str, error: float, save: Callable[[], Any]) -> None:
        if not math.isfinite(error):
            raise UserError(
                f"{method}: block {task.index} gives values that are not finite before anything is learned; "
                "the checkpoint is damaged or needs another number type.",
                field="model",
                given=f"block {task.index}",
            )
        self.task, self.method, self.save = task, method, save
        self.error, self.state = error, save()
        self.losses = [error]

    def offer(self, error: float, label: str) -> bool:
        """Take the present state if it is better; False, with a warning that names the block, where its error
        is not finite: learning then stops."""
        if not math.isfinite(error):
            self.lost(label)
            return False
        self.losses.append(error)
        self.task.note(f"{self.method}, block {self.task.index}, {label}: error {error:.5f}")
        if error < self.error:
            self.error, self.state = error, self.save()
        return True

    def lost(self, label: str) -> None:
        """Say that learning left the finite numbers."""
        warnings.warn(
            f"{self.method}: the loss of block {self.task.index} is not finite ({label}); learning stops "
            f"there and the best state before is kept (error {self.error:.5f}).",
            stacklevel=2,
        )


def copied(tensors: Any) -> list[Tensor]:
    """Copies of learned tensors, to return to."""
    return [each.detach().clone() for each in tensors]


def restore(tensors: Any, kept: list[Tensor]) -> None:
    """Put the copies back."""
    with torch.no_grad():
        for each, values in zip(tensors, kept, strict=True):
            each.copy_(values)
