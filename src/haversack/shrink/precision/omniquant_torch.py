"""OmniQuant's learning: the scales of a block's matrices, and the factors between its channels, by gradients.

See omniquant.py for the paper. The equations, for a matrix W [rows, columns] in groups:

    W' = diag(1 / s_out) W diag(s_in)           where channels are smoothed (LET)
    scale = f16(sigmoid(u) * range(W') * ratio)   one for each row and group (LWC)
    used = clamp(round(W' / scale), low, high) * scale

`range` is the value of largest magnitude over the lowest code; `ratio` is 1, or what the searched scales are
to it at the start.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from haversack.models._blocks_torch import Hooks, Point
from haversack.shrink._fake_torch import (
    Clipped,
    Int8Activations,
    by_group,
    fake_weight,
    nearest_codes,
    stored,
)
from haversack.shrink._learning_torch import Best, Lesson, copied, restore, step
from haversack.shrink._precision import Quantized, StoredKind
from haversack.shrink._reconstruction import BlockTask, Reconstructed
from haversack.shrink._rounding import grouped, levels, searched_scales
from haversack.shrink._smoothing_torch import Smoothing

CLIPPING_RATE, SMOOTHING_RATE = 1e-2, 5e-3
PAPER_STEPS, FASTEST = 2560, 10.0
"""20 epochs of 128 texts; with fewer steps rates are as many times larger, at most FASTEST times."""


class LearnedClipping(nn.Module):
    """The scales of one matrix: a learned share of its range, whatever smoothing makes of the matrix."""

    def __init__(self, weight: Tensor, kind: StoredKind, bits: int, start: str) -> None:
        super().__init__()
        self.kind, self.bits = kind, bits
        half = kind.group is not None
        plain = self.range_of(weight)
        ratio = np.ones(tuple(plain.shape), np.float32)
        if start == "searched":
            found = searched_scales(grouped(weight.numpy(), kind.group), bits, half=half)
            full = plain.numpy()
            share = np.divide(found, full, out=np.ones_like(found), where=full != 0)
            ratio = share / np.float32(torch.tensor(4.0).sigmoid())
        self.clip = Clipped(ratio, half)

    def range_of(self, weight: Tensor) -> Tensor:
        """The scales [rows, groups] that put each group's value of largest magnitude on the lowest code."""
        wide = by_group(weight, self.kind.group)
        places = wide.abs().argmax(dim=-1, keepdim=True)
        return wide.gather(-1, places)[..., 0] / levels(self.bits)[0]

    def scales(self, weight: Tensor) -> Tensor:
        """The scales of `weight` as they are stored."""
        return self.clip(self.range_of(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """`weight` as it reads back after being stored."""
        return fake_weight(weight, self.scales(weight), self.bits, self.kind.group)

    def quantized(self, weight: Tensor) -> Quantized:
        """`weight` as it is stored."""
        with torch.no_grad():
            scales = self.scales(weight)
            codes = nearest_codes(weight, scales, self.bits, self.kind.group)
            return stored(codes, scales, self.kind, weight.shape[1])


class Quantizing(Hooks):
    """A block whose matrices are smoothed, clipped and rounded, and whose activations are if asked."""

    def __init__(self, lesson: Lesson, method: Any) -> None:
        weights, matrices = lesson.weights, lesson.task.record.matrices()
        kinds = {each.weight: method.stored(each.outputs, each.inputs) for each in matrices}
        self.integers = method.activations == "int8-dynamic"
        self.rounding = Int8Activations({name: kind.group for name, kind in kinds.items()})
        self.smoothing = Smoothing(lesson) if self.integers else None
        start = {name: self._smoothed(name, weights[name]).detach() for name in kinds}
        self.clipping = {
            name: LearnedClipping(start[name], kind, method.bits, method.start)
            for name, kind in kinds.items()
        }

    def _smoothed(self, name: str, tensor: Tensor) -> Tensor:
        return tensor if self.smoothing is None else self.smoothing(name, tensor)

    def weight(self, name: str, tensor: Tensor) -> Tensor:
        tensor = self._smoothed(name, tensor)
        clipping = self.clipping.get(name)
        return tensor if clipping is None else clipping(tensor)

    def activation(self, point: Point, tensor: Tensor) -> Tensor:
        return self.rounding.activation(point, tensor) if self.integers else tensor

    def groups(self, speed: float = 1.0) -> list[dict[str, Any]]:
        """What is learned, and how fast: the paper's rates times `speed`."""
        clips = [each.clip.learned for each in self.clipping.values()]
        found: list[dict[str, Any]] = [{"params": clips, "lr": CLIPPING_RATE * speed}]
        if self.smoothing is not None and self.smoothing.learned():
            found.append({"params": self.smoothing.learned(), "lr": SMOOTHING_RATE * speed})
        return found


def reconstruct(task: BlockTask, method: Any) -> Reconstructed:
    """The block with the clipping and smoothing of least error."""
    torch.manual_seed(task.seed)
    lesson = Lesson(task, given=method.inputs, batch=method.batch)
    hooks = Quantizing(lesson, method)
    steps = method.epochs * -(-lesson.count // method.batch)
    groups = hooks.groups(min(FASTEST, max(1.0, PAPER_STEPS / steps)))
    learned = [each for group in groups for each in group["params"]]
    best = Best(task, method.name, lesson.whole_error(hooks), lambda: copied(learned))
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for epoch in range(method.epochs):
        label = f"epoch {epoch + 1} of {method.epochs}"
        for texts in lesson.batches():
            if not step(optimizer, lesson.error(texts, hooks)):
                best.lost(label)
                break
            hooks.rounding.forget()
            if hooks.smoothing is not None:
                hooks.smoothing.keep_away_from_zero()
        else:
            if best.offer(lesson.whole_error(hooks), label):
                continue
        break
    restore(learned, best.state)
    del optimizer
    vectors = {name: values for name, values in task.weights.items() if name not in hooks.clipping}
    weights = lesson.weights
    if hooks.smoothing is not None:
        folded = hooks.smoothing.folded()
        vectors = {name: folded[name] for name in vectors}
        weights = {name: torch.from_numpy(values) for name, values in folded.items()}
    matrices = {name: each.quantized(weights[name]) for name, each in hooks.clipping.items()}
    return Reconstructed(matrices, vectors, tuple(best.losses))
