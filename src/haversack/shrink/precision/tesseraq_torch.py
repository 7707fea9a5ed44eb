"""TesseraQ's learning: soft roundings of a block's matrices, hardened round by round.

See tesseraq.py for the paper. For a weight w of a group with the scale s:

    h = sigmoid(v),  v = log(f / (1 - f)) at first,  f = w / s - floor(w / s)
    used = clamp(floor(w / s) + h, low, high) * f16(2 sigmoid(u) s)

Hard is v = 30 or -30, where f32's sigmoid no longer moves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from haversack.models._blocks_torch import Hooks, Point
from haversack.shrink._fake_torch import (
    Int8Activations,
    Rescaled,
    by_group,
    divided,
    nearest_codes,
    stored,
    whole,
)
from haversack.shrink._learning_torch import Best, Lesson, copied, restore, step
from haversack.shrink._precision import SAMPLE_ROWS, Quantized, StoredKind
from haversack.shrink._reconstruction import BlockTask, Reconstructed
from haversack.shrink._rounding import F32, grouped, levels, searched_scales
from haversack.shrink.precision.awq import clipped

SOFT_SHARES = (0.75, 0.5, 0.375, 0.25, 0.125, 0.09, 0.06, 0.04, 0.02, 0.005)
RATE, PAPER_STEPS, DECAY = 1e-3, 250, 1e-4
HARD = 30.0
EDGE = 1e-4  # nearest that a soft rounding starts to 0 or 1


def start_scales(weight: F32, inputs: F32 | None, bits: int, group: int | None) -> F32:
    """The scales [rows, groups] that learning starts from: clipped by what AWQ's search says of `inputs`
    [tokens, columns], or those of least rounding error."""
    if inputs is not None:
        return clipped(weight, inputs, bits, group, "leaning")[1]
    return searched_scales(grouped(weight, group), bits, half=group is not None)


class SoftRounding(nn.Module):
    """One matrix whose roundings are between down (0) and up (1)."""

    floors: Tensor

    def __init__(self, weight: Tensor, scales: F32, kind: StoredKind, bits: int) -> None:
        super().__init__()
        self.kind, self.columns, self.levels = kind, weight.shape[1], levels(bits)
        self.scales = Rescaled(scales, kind.group is not None)
        given = torch.from_numpy(scales)
        steps = divided(by_group(weight, kind.group), given)
        floors = steps.floor()
        self.register_buffer("floors", floors)
        share = (steps - floors).clamp(EDGE, 1 - EDGE)
        self.v = nn.Parameter((share / (1 - share)).log())
        self.nearest = nearest_codes(weight, given, bits, kind.group).to(torch.int8)

    def codes(self) -> Tensor:
        """Codes [rows, groups, group], soft ones between two integers."""
        return (self.floors + self.v.sigmoid()).clamp(*self.levels)

    def forward(self) -> Tensor:
        """The matrix as it is at present."""
        return whole(self.codes() * self.scales()[..., None], self.columns)

    def harden(self, soft_share: float) -> None:
        """Leave the `soft_share` nearest to 1/2 soft; what is hard stays hard."""
        with torch.no_grad():
            distance = self.v.abs()
            count = round(soft_share * distance.numel())
            if count:
                limit = distance.flatten().kthvalue(count).values
                hard = distance > limit
            else:
                hard = torch.ones_like(distance, dtype=torch.bool)
            self.v.copy_(torch.where(hard, torch.where(self.v > 0, HARD, -HARD), self.v))

    def start_again(self) -> None:
        """The roundings to nearest and the scales that learning began with."""
        with torch.no_grad():
            self.v.copy_(torch.where(self.nearest > self.floors, HARD, -HARD))
            self.scales.learned.zero_()

    def quantized(self) -> Quantized:
        """What is stored, every rounding hard."""
        with torch.no_grad():
            codes = (self.floors + (self.v > 0)).clamp(*self.levels)
            return stored(codes, self.scales(), self.kind, self.columns)


class Rounding(Hooks):
    """A block whose matrices are rounded softly, and whose activations are rounded if asked."""

    def __init__(self, matrices: dict[str, SoftRounding], integers: bool) -> None:
        self.matrices, self.integers = matrices, integers
        self.rounding = Int8Activations({name: each.kind.group for name, each in matrices.items()})

    @classmethod
    def start(cls, lesson: Lesson, method: Any) -> Rounding:
        """Every matrix of the block with the scales that learning starts from."""
        matrices: dict[str, SoftRounding] = {}
        for group in lesson.task.record.products():
            inputs = lesson.sample([group[0].weight], SAMPLE_ROWS) if method.start == "awq" else {}
            for linear in group:
                kind = method.stored(linear.outputs, linear.inputs)
                weight = lesson.weights[linear.weight]
                scales = start_scales(weight.numpy(), inputs.get(group[0].weight), method.bits, kind.group)
                matrices[linear.weight] = SoftRounding(weight, scales, kind, method.bits)
        return cls(matrices, method.activations == "int8-dynamic")

    def weight(self, name: str, tensor: Tensor) -> Tensor:
        matrix = self.matrices.get(name)
        return tensor if matrix is None else matrix()

    def activation(self, point: Point, tensor: Tensor) -> Tensor:
        return self.rounding.activation(point, tensor) if self.integers else tensor

    def harden(self, soft_share: float) -> None:
        """Harden every matrix, each by itself."""
        for matrix in self.matrices.values():
            matrix.harden(soft_share)

    def learned(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Roundings, and factors on scales."""
        every = self.matrices.values()
        return [each.v for each in every], [each.scales.learned for each in every]


def reconstruct(task: BlockTask, method: Any) -> Reconstructed:
    """The block with learned roundings and scales."""
    torch.manual_seed(task.seed)
    lesson = Lesson(task, given=method.inputs, batch=method.batch)
    hooks = Rounding.start(lesson, method)
    vectors = {name: values for name, values in task.weights.items() if name not in hooks.matrices}
    start = copied([*hooks.learned()[0], *hooks.learned()[1]])
    for matrix in hooks.matrices.values():
        matrix.start_again()
    best = Best(task, method.name, lesson.whole_error(hooks), lambda: None)
    losses = [best.error]
    restore([*hooks.learned()[0], *hooks.learned()[1]], start)
    del start
    losses += learn(task, method, lesson, hooks, best)
    final = losses[-1]
    if not final < best.error:
        for matrix in hooks.matrices.values():
            matrix.start_again()
        losses.append(best.error)
    return Reconstructed(
        {name: matrix.quantized() for name, matrix in hooks.matrices.items()}, vectors, tuple(losses)
    )


def learn(task: BlockTask, method: Any, lesson: Lesson, hooks: Rounding, best: Best) -> list[float]:
    """Harden and learn, round by round; the error after each, the last with every rounding hard."""
    roundings, factors = hooks.learned()
    rate = RATE * PAPER_STEPS / method.steps
    texts = endless(lesson)
    losses: list[float] = []
    for number, share in enumerate((*SOFT_SHARES, 0.0)):
        kept = copied([*roundings, *factors])
        hooks.harden(share)
        groups: list[dict[str, Any]] = [{"params": factors, "weight_decay": DECAY}]
        if share:
            groups.append({"params": roundings, "weight_decay": 0.0})
        for each in roundings:
            each.requires_grad_(bool(share))
        optimizer = torch.optim.AdamW(groups, lr=rate)
        label = f"round {number + 1} of {len(SOFT_SHARES) + 1}"
        for _ in range(method.steps):
            if not step(optimizer, lesson.error(next(texts), hooks)):
                best.lost(label)
                restore([*roundings, *factors], kept)
                hooks.harden(0.0)
                return [*losses, lesson.whole_error(hooks)]
            hooks.rounding.forget()
        losses.append(lesson.whole_error(hooks))
        task.note(f"{method.name}, block {task.index}, {label}: error {losses[-1]:.5f}")
    return losses


def endless(lesson: Lesson) -> Iterator[Sequence[int]]:
    """Batches of texts, in an order drawn anew each time all were seen."""
    return itertools.chain.from_iterable(lesson.batches() for _ in itertools.count())
