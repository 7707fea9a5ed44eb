"""The slimmable ensemble and its decoder as PyTorch modules, and the training that joins them to a teacher.

Paper: arXiv 2306.12691, with the predecessor's training as its public code has it (slimmable.py says what was
read). The teacher is frozen; encoder and decoder learn to restore its features at the split and at each stage
behind it (generalized head network distillation). Every step sums the losses of the smallest mode, the
largest and drawn ones (the sandwich rule, over members and bits). The decoder's norms keep statistics of
their own for each mode, taken anew after the training as plain means over batches.
What we changed: errors are means of squares over the teacher's variance, so that neither the picture's size
nor a stage's scale weighs; the teacher's answers are a stage as well; pictures come turned and in other
light; Adam's rate stays even and then falls straight to nothing; gradients pass the quantizer straight
through within its clip, and the clip learns. The members learn side by side, as one network in groups
(_slim_joint_torch.py).
Cost: a step is one pass of the members and three of the server's half, there and back. Deterministic for its
seed, machine and number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from haversack.models._train_loop_torch import keep_freed_memory
from haversack.models.vision import _slim_record as record
from haversack.models.vision._detector_torch import DetectorTeacher
from haversack.models.vision._lean_torch import Norm
from haversack.models.vision._slim_joint_torch import joint
from haversack.models.vision._slim_record import BITS, SplitNet
from haversack.models.vision._slim_student_torch import (
    Mode,
    ModeNorm,
    Pictures,
    Slim,
    measures,
    normed,
    sum_of,
    through_cells,
)
from haversack.models.vision._slim_teacher_torch import Frozen, Teacher, module_of
from haversack.models.vision.slimmable import CLIPS, gains

SYSTEM = 13


class Student(Slim):
    """Encoder ensemble and decoder. `shared`: one set of statistics for all modes (an ablation);
    `range_`: `learned` or `min-max`."""

    def __init__(
        self,
        net: SplitNet,
        gain: Sequence[float] | None = None,
        shared: bool = False,
        range_: str = "learned",
    ) -> None:
        super().__init__()
        self.net, self.shared, self.range = net, shared, range_
        self.gain = tuple(gain) if gain is not None else gains(net.members)
        self.most, self.modes = net.members, modes_of(net.members)
        self.members = nn.ModuleList(
            nn.Sequential(*(module_of(layer, record.MOMENTUM) for layer in record.member()))
            for _ in range(net.members)
        )
        layers, modes = net.decoder(), 1 if shared else net.members * BITS
        self.convs = nn.ModuleList(
            nn.Conv2d(each.inputs, each.outputs, each.kernel, padding=1, bias=False) for each in layers
        )
        self.norms = nn.ModuleList(ModeNorm(each.outputs, modes, 0.1) for each in layers)
        self.rectified = [each.activation is not None for each in layers]
        self.log_clips = nn.Parameter(torch.tensor(CLIPS).log())

    def outputs(self, x: Tensor, k: int) -> list[Tensor]:
        """g_i m_i(x) of the first k members."""
        return [self.gain[at] * self.members[at](x) for at in range(k)]

    def learning(self, x: Tensor, k: int) -> list[Tensor]:
        """The same, in one pass with the statistics of the batch: for training alone."""
        made = joint(list(self.members)[:k], x).chunk(k, 1)
        return [gain * one for gain, one in zip(self.gain, made, strict=False)]

    def sent(self, y: Tensor, bits: int) -> Tensor:
        """y as the server restores it; gradients pass straight through within the clip."""
        axes = (1, 2, 3)
        if self.range == "min-max":
            low, high = y.detach().amin(axes, keepdim=True), y.detach().amax(axes, keepdim=True)
            step = (high - low).clamp(min=1e-6) / 2**bits
        else:
            deviation = y.detach().std(axes, correction=0, keepdim=True).clamp(min=1e-6)
            reach = self.log_clips[bits - 1].exp() * deviation
            low, step = y.detach().mean(axes, keepdim=True) - reach, 2 * reach / 2**bits
        return through_cells(y, low, step, bits)

    def decode(self, sent: Tensor, mode: Mode) -> Tensor:
        """The teacher's feature at the split, restored."""
        at = 0 if self.shared else mode_number(mode)
        for conv, norm, rectified in zip(self.convs, self.norms, self.rectified, strict=True):
            sent = norm(conv(sent), at)
            sent = functional.relu(sent) if rectified else sent
        return sent


def mode_number(mode: Mode) -> int:
    """0 for (1, 1), 1 for (1, 2), ..."""
    return (mode[0] - 1) * BITS + mode[1] - 1


def modes_of(members: int) -> list[Mode]:
    """Every mode, (1, 1) first."""
    return [(k, b) for k in range(1, members + 1) for b in range(1, BITS + 1)]


@dataclass(frozen=True)
class Distilling:
    """How the student learns. `copies`: modes of one step, the smallest and the largest among them;
    `sandwich` False: as many, all drawn. `static`: this mode alone. `descent`: the share of the steps
    after which the rate falls; `kept_every`: steps between states that are kept."""

    steps: int = 500
    rows: int = 24
    rate: float = 4e-3
    copies: int = 3
    sandwich: bool = True
    static: Mode | None = None
    seed: int = 0
    threads: int = 1
    recalibration: int = 12
    descent: float = 0.6
    kept_every: int = 50

    def factor(self, step: int) -> float:
        """What the rate is multiplied with in `step`: up within 50 steps, then even, from `descent` of all
        steps on straight down to nothing."""
        left = (self.steps - step) / (self.steps * (1 - self.descent))
        return min(1.0, (step + 1) / 50, left)

    def modes(self, every: Sequence[Mode], draw: np.random.Generator) -> list[Mode]:
        """The modes of one step, of `every` mode from the smallest to the largest."""
        if self.static is not None:
            return [self.static]
        found = [every[0], every[-1]] if self.sandwich else []
        count = min(max(self.copies - len(found), 0), len(every))
        drawn = draw.choice(len(every), count, replace=False)
        return [*found, *(every[int(at)] for at in drawn)]


def distil(
    teacher: Frozen,
    student: Slim,
    pictures: Pictures,
    how: Distilling,
    say: Callable[[str], None] = lambda text: None,
    keep: Path | None = None,
) -> None:
    """Train `student` to give `teacher` its features and answers from what was sent; pictures u8 [n, side,
    side, 3]. What a step draws depends on the seed and its number alone: a run that was killed goes on from
    the file `keep` to the same numbers.

    Raises FloatingPointError when the loss is no number any more.
    """
    torch.set_num_threads(how.threads)
    keep_freed_memory()
    measures(teacher, False)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    measures(student, True)
    optimizer = torch.optim.Adam(student.parameters(), lr=how.rate)
    losses: list[float] = []
    for step in range(_resumed(student, optimizer, how, keep), how.steps):
        for group in optimizer.param_groups:
            group["lr"] = how.rate * how.factor(step)
        draw = np.random.default_rng([how.seed, 1, step])
        x = lit(normed(turned(pictures[draw.integers(0, len(pictures), how.rows)], draw)), draw)
        with torch.no_grad():
            wanted = teacher.stages(teacher.head_of(x))
            scales = [1 / each.var().clamp(min=1e-6) for each in wanted]
        chosen = how.modes(student.modes, draw)
        made = student.learning(x, max(k for k, _ in chosen))
        total = torch.zeros(())
        for k, b in chosen:
            found = teacher.stages(student.decode(student.sent(sum_of(made[:k]), b), (k, b)))
            for one, other, scale in zip(found, wanted, scales, strict=True):
                total = total + scale * functional.mse_loss(one, other)
        if not torch.isfinite(total):
            raise FloatingPointError(f"the loss of step {step + 1} is {float(total)}; lower the rate")
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()) / len(chosen))
        if (step + 1) % how.kept_every == 0:
            say(f"step {step + 1} of {how.steps}: error {np.mean(losses[-how.kept_every :]):.3f}")
            _keep(student, optimizer, step + 1, how, keep)
    recalibrate(student, pictures, how)


def begin_at(teacher: Frozen, student: Slim, pictures: Pictures, seed: int) -> None:
    """Let the decoder's last norm begin with the mean and deviation that each channel of the teacher's
    feature has: those of a published detector are not near one, and Adam's even steps would take long to
    get there."""
    draw = np.random.default_rng([seed, 3])
    rows = draw.integers(0, len(pictures), recalibrated_rows(pictures.shape[1]))
    last = student.norms[-1]
    assert isinstance(last, ModeNorm)
    with torch.no_grad():
        feature = teacher.head_of(normed(pictures[rows]))
        last.weight.copy_(feature.std((0, 2, 3)).clamp(min=1e-3))
        last.bias.copy_(feature.mean((0, 2, 3)))


def _keep(
    student: Slim, optimizer: torch.optim.Optimizer, step: int, how: Distilling, keep: Path | None
) -> None:
    if keep is not None:
        state = {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state | {"step": step, "steps": how.steps}, keep.with_suffix(".partial"))
        keep.with_suffix(".partial").replace(keep)


def _resumed(student: Slim, optimizer: torch.optim.Optimizer, how: Distilling, keep: Path | None) -> int:
    """The step that `keep` stands before. A run of another length is gone on with where neither has begun to
    descend, for there they are the same."""
    if keep is None or not keep.is_file():
        return 0
    state = torch.load(keep, weights_only=True)
    step = int(state["step"])
    if state["steps"] != how.steps and step > how.descent * min(how.steps, state["steps"]):
        return 0
    student.load_state_dict(state["student"])
    optimizer.load_state_dict(state["optimizer"])
    return step


def turned(pictures: Pictures, draw: np.random.Generator) -> Pictures:
    """Each picture turned left to right, or not."""
    made = pictures.copy()
    flip = draw.random(len(pictures)) < 0.5
    made[flip] = made[flip, :, ::-1]
    return made


def lit(x: Tensor, draw: np.random.Generator) -> Tensor:
    """Normed pictures in other light: each a contrast between 0.75 and 1.25, each of its colours moved."""
    contrast = torch.from_numpy(draw.uniform(0.75, 1.25, (len(x), 1, 1, 1)).astype(np.float32))
    moved = torch.from_numpy(draw.normal(0, 0.2, (len(x), 3, 1, 1)).astype(np.float32))
    return (x * contrast + moved).clamp(-2, 2).contiguous(memory_format=torch.channels_last)


def recalibrated_rows(side: int) -> int:
    """Pictures of a batch that statistics are taken over: as many as take the memory of 64 small ones.

    >>> [recalibrated_rows(side) for side in (48, 96, 192, 384)]
    [64, 64, 16, 4]
    """
    return max(1, min(64, 64 * 96 * 96 // (side * side)))


def recalibrate(student: Slim, pictures: Pictures, how: Distilling) -> None:
    """Statistics of all norms anew: plain means over batches, of the decoder's for each mode."""
    draw = np.random.default_rng([how.seed, 2])
    count, rows = how.recalibration, recalibrated_rows(pictures.shape[1])
    batches = [normed(pictures[draw.integers(0, len(pictures), rows)]) for _ in range(count)]
    measures(student, True)
    for each in student.modules():
        if isinstance(each, Norm):
            each.reset_running_stats()
    members = [each for each in student.members.modules() if isinstance(each, Norm)]
    learning = [tensor for tensor in student.parameters() if tensor.requires_grad]
    for tensor in learning:  # norms measure where gradients pass; of what does not learn none is kept
        tensor.requires_grad_(False)
    with torch.enable_grad():
        for number, x in enumerate(batches):
            for own in members:
                own.momentum = 1 / (number + 1)
            student.outputs(x, student.most)
    for tensor in learning:
        tensor.requires_grad_(True)
    measures(student, False)
    decoders = [each for each in student.norms if isinstance(each, ModeNorm)]
    every = [how.static] if how.static is not None else student.modes
    with torch.no_grad():
        made = [student.outputs(x, student.most) for x in batches]
        for norm in decoders:
            norm.train(True)
        seen = 0
        for mode in every:
            if not student.shared:
                seen = 0
            for outputs in made:
                for norm in decoders:
                    norm.momentum = 1 / (seen + 1)
                seen += 1
                student.decode(student.sent(sum_of(outputs[: mode[0]]), mode[1]), mode)
    measures(student, False)


def tensors_of(teacher: Frozen, student: Student) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Every tensor of a split network by the names of its pack, f32."""
    found = teacher.tensors()
    for at, members in enumerate(student.members):
        for number, layer in enumerate(record.member()):
            held = members[number].state_dict()
            found |= {
                f"members.{at}.{layer.name}.{name}": tensor
                for name, tensor in held.items()
                if "num_batches" not in name
            }
    for unit, conv, norm in zip(student.net.decoder(), student.convs, student.norms, strict=True):
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, ModeNorm)
        at_ = f"decoder.{unit.name}"
        found |= {f"{at_}.conv.weight": conv.weight, f"{at_}.norm.weight": norm.weight}
        found |= {f"{at_}.norm.bias": norm.bias, f"{at_}.norm.means": norm.mean}
        found[f"{at_}.norm.variances"] = norm.variance
    found["clips"] = student.log_clips.exp()
    return {name: tensor.detach().contiguous().numpy().astype(np.float32) for name, tensor in found.items()}


def modules_of(
    net: SplitNet, tensors: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]], **how: Any
) -> tuple[Frozen, Student]:
    """Teacher and student with the tensors of a pack; `how` goes to `Student`. With one set of statistics for
    all modes these are the first mode's, until they are taken anew."""
    teacher, student = teacher_of(net, tensors), Student(net, **how)
    with torch.no_grad():
        for at, members in enumerate(student.members):
            for number, layer in enumerate(record.member()):
                for name, tensor in members[number].state_dict().items():
                    if "num_batches" not in name:
                        tensor.copy_(_tensor(tensors[f"members.{at}.{layer.name}.{name}"]))
        for unit, conv, norm in zip(net.decoder(), student.convs, student.norms, strict=True):
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, ModeNorm)
            at_ = f"decoder.{unit.name}"
            conv.weight.copy_(_tensor(tensors[f"{at_}.conv.weight"]))
            norm.weight.copy_(_tensor(tensors[f"{at_}.norm.weight"]))
            norm.bias.copy_(_tensor(tensors[f"{at_}.norm.bias"]))
            norm.mean.copy_(_tensor(tensors[f"{at_}.norm.means"])[: len(norm.mean)])
            norm.variance.copy_(_tensor(tensors[f"{at_}.norm.variances"])[: len(norm.variance)])
        student.log_clips.copy_(_tensor(tensors["clips"]).log())
    measures(student, False)
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return teacher.to(memory_format=torch.channels_last).eval(), student  # type: ignore[call-overload]


def teacher_of(net: SplitNet, tensors: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]) -> Frozen:
    """The frozen teacher with the tensors of a pack: our own, or a published detector."""
    if net.detector is not None:
        return DetectorTeacher(net, tensors)
    teacher = Teacher(net)
    with torch.no_grad():
        for name, tensor in teacher.tensors().items():
            tensor.copy_(_tensor(tensors[name]))
    return teacher


def _tensor(array: np.ndarray[Any, np.dtype[np.float32]]) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))
