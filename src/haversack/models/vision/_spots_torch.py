"""Training the teacher: an anchor-free detector, or a classifier, on pictures that fit into memory.

A cell of the detector's map is an object's where its middle lies within the middle of the box; of several
boxes the smallest. Losses: focal (alpha 0.25, gamma 2) for the classes, GIoU for boxes; after FCOS (Tian et
al., 2019) without its centre-ness. Adam with decoupled decay, the rate a cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from haversack.models._train_loop_torch import keep_freed_memory
from haversack.models.vision._slim_record import SplitNet
from haversack.models.vision._slim_student_torch import Pictures, measures, normed
from haversack.models.vision._slim_teacher_torch import Teacher, cosine
from haversack.models.vision._spots import STRIDE, UNIT, cell_middles

MIDDLE = 0.3
"""Of a box's sides: how far from its middle a cell may lie."""


@dataclass(frozen=True)
class Teaching:
    """How long and how fast."""

    steps: int = 900
    rows: int = 32
    rate: float = 2e-3
    decay: float = 1e-2
    seed: int = 0
    threads: int = 1


def teach(
    net: SplitNet,
    pictures: Pictures,
    boxes: Sequence[NDArray[np.float32]] | None,
    labels: Sequence[NDArray[np.int64]] | NDArray[np.int64],
    how: Teaching,
    say: Callable[[str], None] = lambda text: None,
) -> Teacher:
    """A teacher trained from nothing. `boxes` and `labels` of each picture; of a classifier `labels` are
    class numbers [n]. Raises FloatingPointError when the loss is no number any more."""
    torch.set_num_threads(how.threads)
    torch.manual_seed(how.seed)
    keep_freed_memory()
    teacher = Teacher(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    measures(teacher, True)
    draw = np.random.default_rng([how.seed, 0])
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=how.rate, weight_decay=how.decay)
    losses: list[float] = []
    for step in range(how.steps):
        for group in optimizer.param_groups:
            group["lr"] = how.rate * cosine(step, how.steps)
        chosen = draw.integers(0, len(pictures), how.rows)
        if boxes is None:
            logits = teacher(normed(pictures[chosen]))
            wanted = torch.from_numpy(np.asarray(labels)[chosen])
            loss = functional.cross_entropy(logits, wanted, label_smoothing=0.05)
        else:
            flip = draw.random(how.rows) < 0.5
            x = pictures[chosen].copy()
            x[flip] = x[flip, :, ::-1]
            own = [
                _flipped(boxes[at], net.side) if turn else boxes[at]
                for at, turn in zip(chosen, flip, strict=True)
            ]
            loss = detection_loss(teacher(normed(x)), own, [labels[at] for at in chosen], len(net.classes))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of step {step + 1} is {float(loss)}; lower the rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            say(f"step {step + 1} of {how.steps}: loss {np.mean(losses[-100:]):.3f}")
    measures(teacher, False)
    return teacher


def _flipped(boxes: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    return np.stack([side - boxes[:, 2], boxes[:, 1], side - boxes[:, 0], boxes[:, 3]], 1)


def assigned(
    boxes: NDArray[np.float32], labels: NDArray[np.int64], side: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each cell, row by row: its class (-1: none) and its box."""
    middles = cell_middles(side // STRIDE)
    if not len(boxes):
        return np.full(len(middles), -1), np.zeros((len(middles), 4), np.float32)
    centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    near = np.abs(middles[:, None] - centre) <= np.maximum(MIDDLE * sides, STRIDE / 2)
    area = np.where(near.all(2), sides.prod(1), np.inf)
    which = area.argmin(1)
    found = np.isfinite(area.min(1))
    return np.where(found, labels[which], -1), boxes[which]


def detection_loss(
    logits: Tensor, boxes: Sequence[NDArray[np.float32]], labels: Sequence[NDArray[np.int64]], classes: int
) -> Tensor:
    """Of a batch: logits [n, classes + 4, h, w]."""
    side = logits.shape[2] * STRIDE
    pairs = [assigned(one, other, side) for one, other in zip(boxes, labels, strict=True)]
    kinds = torch.from_numpy(np.stack([pair[0] for pair in pairs]))
    goals = torch.from_numpy(np.stack([pair[1] for pair in pairs]))
    flat = logits.flatten(2).transpose(1, 2)
    there = kinds >= 0
    wanted = functional.one_hot(kinds.clamp(min=0), classes).float() * there[..., None]
    scores = flat[..., :classes]
    cross = functional.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
    hit = torch.exp(-cross)
    weight = 0.25 * wanted + 0.75 * (1 - wanted)
    many = there.sum().clamp(min=1)
    total = (weight * (1 - hit) ** 2 * cross).sum() / many
    if there.any():
        middles = torch.from_numpy(cell_middles(logits.shape[2]))[None].expand(len(flat), -1, -1)[there]
        reach = flat[..., classes:][there].clamp(-3, 3).exp() * UNIT
        made = torch.cat([middles - reach[:, :2], middles + reach[:, 2:]], 1)
        total = total + (1 - generalized_iou(made, goals[there])).mean()
    return total


def generalized_iou(one: Tensor, other: Tensor) -> Tensor:
    """GIoU of pairs of boxes [n, 4]."""
    low, high = torch.maximum(one[:, :2], other[:, :2]), torch.minimum(one[:, 2:], other[:, 2:])
    both = (high - low).clamp(min=0).prod(1)
    areas = [(box[:, 2:] - box[:, :2]).prod(1) for box in (one, other)]
    union = areas[0] + areas[1] - both
    outer = torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2])
    hull = outer.prod(1)
    return both / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)
