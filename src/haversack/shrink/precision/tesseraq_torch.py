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
    stored,
    whole,
)
from haversack.shrink._learning_torch import Best, Lesson, copied, restore, step
from haversack.shrink._precision import SAMPLE_ROWS, Quantized, StoredKind
from haversack.shrink._reconstruction import BlockTask, Reconstructed
from haversack.shrink._rounding import F32, I8, grouped, levels, searched_scales
from haversack.shrink.precision.awq import clipped
from haversack.shrink.precision.gptq import Gptq

SOFT_SHARES = (0.75, 0.5, 0.375, 0.25, 0.125, 0.09, 0.06, 0.04, 0.02, 0.005)
RATE, DECAY = 5e-4, 1e-4
PAPER_STEPS = 250
FASTEST, FASTEST_SCALES = 40.0, 4.0
"""With fewer steps a round rates are as many times larger, at most so many times."""
HARD = 30.0
EDGE = 1e-4  # nearest that a soft rounding starts to 0 or 1
LEAN = (
    0.02  # farthest that it starts from a code that it is given: GPTQ's codes make good one another's errors
)


class SoftRounding(nn.Module):
    """One matrix whose roundings are between down (0) and up (1).

    `scales` [rows, groups] are those it starts from; `codes` [rows, columns], where given, what its weights
    were rounded to: each rounding then starts on the code's side, at most LEAN from it, and leads to the code
    on the weight's side of it.
    """

    floors: Tensor

    def __init__(self, weight: Tensor, scales: F32, kind: StoredKind, bits: int, codes: I8 | None) -> None:
        super().__init__()
        self.kind, self.columns, self.levels = kind, weight.shape[1], levels(bits)
        self.scales = Rescaled(scales, kind.group is not None)
        steps = divided(by_group(weight, kind.group), torch.from_numpy(scales))
        if codes is None:
            floors = steps.floor()
            up = (steps - floors).clamp(EDGE, 1 - EDGE)
            self.first = steps.round().clamp(*self.levels).to(torch.int8)
        else:
            self.first = by_group(torch.from_numpy(codes), kind.group)
            below = steps < self.first
            floors = self.first - below.float()
            away = (steps - self.first).abs().clamp(EDGE, LEAN)
            up = torch.where(below, 1 - away, away)
        self.register_buffer("floors", floors)
        self.begin = (up / (1 - up)).log()
        self.v = nn.Parameter(self.begin.clone())

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

    def set_back(self, *, hard: bool) -> None:
        """The scales that learning began with, and its roundings as they begin or as the codes they were."""
        with torch.no_grad():
            up = torch.where(self.first > self.floors, HARD, -HARD)
            self.v.copy_(up if hard else self.begin)
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
        """Every matrix of the block, hard, as the start of `method` rounds it; groups in order of use, each
        fitted to what those before it give."""
        found = cls({}, method.activations == "int8-dynamic")
        for group in lesson.task.record.products():
            weights = {linear.weight: lesson.weights[linear.weight] for linear in group}
            first = group[0].weight
            for name, (scales, codes) in start_of(method, weights, lesson, first, found).items():
                kind = method.stored(*weights[name].shape)
                found.add(name, SoftRounding(weights[name], scales, kind, method.bits, codes))
        return found

    def add(self, name: str, matrix: SoftRounding) -> None:
        """One more matrix, hard."""
        matrix.set_back(hard=True)
        self.matrices[name] = matrix
        self.rounding.groups[name] = matrix.kind.group

    def set_back(self, *, hard: bool) -> None:
        """Every matrix as learning begins, or as the codes it was rounded to."""
        for matrix in self.matrices.values():
            matrix.set_back(hard=hard)

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


def start_of(
    method: Any, weights: dict[str, Tensor], lesson: Lesson, first: str, before: Rounding
) -> dict[str, tuple[F32, I8 | None]]:
    """Scales [rows, groups] and codes (None: to nearest) of the matrices of one input, that of `first`.

    "awq": groups clipped by its search; "gptq": its scales and codes; "searched": scales of least rounding
    error.
    """
    arrays = {name: weight.numpy() for name, weight in weights.items()}
    group = method.stored(*next(iter(arrays.values())).shape).group
    if method.start == "gptq":
        gptq = Gptq(bits=method.bits, group=method.group)
        quantized = gptq.quantize(arrays, lesson.statistics(first, before))
        return {name: (each.scales, each.codes) for name, each in quantized.items()}
    if method.start == "awq":
        inputs = lesson.sample([first], SAMPLE_ROWS)[first]
        return {
            name: (clipped(weight, inputs, method.bits, group, "leaning")[1], None)
            for name, weight in arrays.items()
        }
    half = group is not None
    return {
        name: (searched_scales(grouped(weight, group), method.bits, half=half), None)
        for name, weight in arrays.items()
    }


def reconstruct(task: BlockTask, method: Any) -> Reconstructed:
    """The block with learned roundings and scales."""
    torch.manual_seed(task.seed)
    lesson = Lesson(task, given=method.inputs, batch=method.batch)
    hooks = Rounding.start(lesson, method)
    vectors = {name: values for name, values in task.weights.items() if name not in hooks.matrices}
    best = Best(task, method.name, lesson.whole_error(hooks), lambda: None)
    hooks.set_back(hard=False)
    losses = [best.error, *learn(task, method, lesson, hooks, best)]
    if not losses[-1] < best.error:
        hooks.set_back(hard=True)
        losses.append(best.error)
    return Reconstructed(
        {name: matrix.quantized() for name, matrix in hooks.matrices.items()}, vectors, tuple(losses)
    )


def learn(task: BlockTask, method: Any, lesson: Lesson, hooks: Rounding, best: Best) -> list[float]:
    """Harden and learn, round by round; the mean error of each round's steps, then that of all texts with
    every rounding hard."""
    roundings, factors = hooks.learned()
    speed = max(1.0, PAPER_STEPS / method.steps)
    slow, fast = RATE * min(FASTEST_SCALES, speed), RATE * min(FASTEST, speed)
    texts = endless(lesson)
    losses: list[float] = []
    for number, share in enumerate((*SOFT_SHARES, 0.0)):
        kept = copied([*roundings, *factors])
        hooks.harden(share)
        groups: list[dict[str, Any]] = [{"params": factors, "lr": slow, "weight_decay": DECAY}]
        if share:
            groups.append({"params": roundings, "lr": fast, "weight_decay": 0.0})
        for each in roundings:
            each.requires_grad_(bool(share))
        optimizer = torch.optim.AdamW(groups)
        label = f"round {number + 1} of {len(SOFT_SHARES) + 1}"
        seen = 0.0
        for _ in range(method.steps):
            loss = lesson.error(next(texts), hooks)
            if not step(optimizer, loss):
                best.lost(label)
                restore([*roundings, *factors], kept)
                hooks.harden(0.0)
                return [*losses, lesson.whole_error(hooks)]
            seen += float(loss.detach())
            hooks.rounding.forget()
        losses.append(seen / method.steps)
        task.note(f"{method.name}, block {task.index}, {label}: error {losses[-1]:.5f}")
    return [*losses, lesson.whole_error(hooks)]


def endless(lesson: Lesson) -> Iterator[Sequence[int]]:
    """Batches of texts, in an order drawn anew each time all were seen."""
    return itertools.chain.from_iterable(lesson.batches() for _ in itertools.count())
