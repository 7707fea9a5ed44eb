"""The slimmable ensemble, its decoder and the teacher as PyTorch modules, and the training that joins them.

Paper: arXiv 2306.12691, with the predecessor's training as its public code has it (slimmable.py says what was
read). The teacher is frozen; encoder and decoder learn to restore its features at the split and at each stage
behind it (generalized head network distillation). Every step sums the losses of the smallest mode, the
largest and drawn ones (the sandwich rule, over members and bits). The decoder's norms keep statistics of
their own for each mode, taken anew after the training as plain means over batches.
What we changed: errors are means of squares over the teacher's variance, so that neither the picture's size
nor a stage's scale weighs; Adam's rate falls as a cosine; gradients pass the quantizer straight through
within its clip, and the clip learns.
Cost: a step of three modes is about the teacher's own step and a half. Deterministic for its seed, machine
and number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from haversack.models._train_loop_torch import keep_freed_memory
from haversack.models.vision import _slim_record as record
from haversack.models.vision._inverted_residual_torch import Block as BlockModule
from haversack.models.vision._inverted_residual_torch import Unit as UnitModule
from haversack.models.vision._lean_torch import Norm
from haversack.models.vision._record import Block, Unit
from haversack.models.vision._slim_record import BITS, SplitNet
from haversack.models.vision.slimmable import CLIPS, gains

SYSTEM = 13

Mode = tuple[int, int]
Pictures = np.ndarray[Any, np.dtype[np.uint8]]


class ResidualModule(nn.Module):
    """See _slim_record.Residual."""

    def __init__(self, residual: record.Residual, momentum: float) -> None:
        super().__init__()
        self.first = UnitModule(residual.first, momentum)
        self.second = UnitModule(residual.second, momentum)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(self.first(x)))


def module_of(layer: record.Layer, momentum: float) -> nn.Module:
    """A layer as a module."""
    if isinstance(layer, Unit):
        return UnitModule(layer, momentum)
    if isinstance(layer, Block):
        return BlockModule(layer, momentum)
    return ResidualModule(layer, momentum)


class Teacher(nn.Module):
    """See _slim_record.SplitNet.teacher; logits [n, outputs, h/8, w/8] of a detector, [n, outputs] of a
    classifier."""

    def __init__(self, net: SplitNet) -> None:
        super().__init__()
        self.net = net
        stages = net.teacher()
        if net.task == "classify":
            stages.pop("neck")
        for name, layers in stages.items():
            self.add_module(name, nn.Sequential(*(module_of(layer, 0.1) for layer in layers)))
        final = net.final()
        self.final = nn.Conv2d(final.inputs, final.outputs, 1)
        with torch.no_grad():
            self.final.weight.mul_(0.1)
            self.final.bias.zero_()  # type: ignore[union-attr]
            if net.task == "detect":
                self.final.bias[: len(net.classes)] = -3.0  # type: ignore[index]

    def head_of(self, x: Tensor) -> Tensor:
        """The feature at the split [n, SPLIT, h/4, w/4] of normed pictures."""
        made: Tensor = self.get_submodule("head")(x)
        return made

    def rest(self, split: Tensor) -> list[Tensor]:
        """The features of the stages behind the split, the last one what the final layer reads."""
        mid = self.get_submodule("mid")(split)
        low = self.get_submodule("low")(mid)
        if self.net.task == "classify":
            return [mid, low]
        neck = self.get_submodule("neck")
        up = functional.interpolate(neck[0](low), scale_factor=2.0, mode="nearest")  # type: ignore[index]
        return [mid, low, neck[1](up + mid)]  # type: ignore[index]

    def answer(self, last: Tensor) -> Tensor:
        """Logits of the last feature."""
        if self.net.task == "classify":
            return self.final(last.mean((2, 3), keepdim=True)).flatten(1)
        made: Tensor = self.final(last)
        return made

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.rest(self.head_of(x))[-1])


class ModeNorm(nn.Module):
    """A batch norm with one scale and shift and the statistics of every mode (switchable batch norm)."""

    def __init__(self, channels: int, modes: int, momentum: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(modes, channels))
        self.register_buffer("variance", torch.ones(modes, channels))
        self.momentum = momentum

    def forward(self, x: Tensor, mode: int) -> Tensor:
        mean, variance = self.mean[mode], self.variance[mode]
        return functional.batch_norm(
            x, mean, variance, self.weight, self.bias, self.training, self.momentum, record.EPS
        )


class Student(nn.Module):
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
        self.members = nn.ModuleList(
            nn.Sequential(*(module_of(layer, record.MOMENTUM) for layer in record.member()))
            for _ in range(net.members)
        )
        first, body = record.decoder()
        modes = 1 if shared else net.members * BITS
        self.convs = nn.ModuleList(
            nn.Conv2d(each.inputs, each.outputs, each.kernel, padding=1, bias=False)
            for each in (first, *body)
        )
        self.norms = nn.ModuleList(ModeNorm(each.outputs, modes, 0.1) for each in (first, *body))
        self.log_clips = nn.Parameter(torch.tensor(CLIPS).log())

    def outputs(self, x: Tensor, k: int) -> list[Tensor]:
        """g_i m_i(x) of the first k members."""
        return [self.gain[at] * self.members[at](x) for at in range(k)]

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
        place = ((y - low) / step).clamp(0, 2**bits - 1e-3)
        cells = place + (place.floor() + 0.5 - place).detach()
        return cells * step + low

    def decode(self, sent: Tensor, mode: Mode) -> Tensor:
        """The teacher's feature at the split, restored."""
        at = 0 if self.shared else mode_number(mode)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            sent = functional.relu(norm(conv(sent), at))
        return sent

    def forward(self, x: Tensor, mode: Mode) -> Tensor:
        y = torch.stack(self.outputs(x, mode[0])).sum(0)
        return self.decode(self.sent(y, mode[1]), mode)

    def measures(self, on: bool) -> None:
        """Whether norms take the statistics of their batches."""
        measures(self, on)


def measures(module: nn.Module, on: bool) -> None:
    """Whether the norms of `module` take the statistics of their batches."""
    module.train(on)
    for each in module.modules():
        if isinstance(each, Norm):
            each.measures = on


def mode_number(mode: Mode) -> int:
    """0 for (1, 1), 1 for (1, 2), ..."""
    return (mode[0] - 1) * BITS + mode[1] - 1


def modes_of(members: int) -> list[Mode]:
    """Every mode, (1, 1) first."""
    return [(k, b) for k in range(1, members + 1) for b in range(1, BITS + 1)]


def normed(pictures: Pictures) -> Tensor:
    """As slimmable.normed, of pictures u8 [n, h, w, 3]."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
    return x.div_(255).sub_(0.5).mul_(4).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Distilling:
    """How the student learns. `copies`: modes of one step, the smallest and the largest among them;
    `sandwich` False: as many, all drawn. `static`: this mode alone."""

    steps: int = 500
    rows: int = 24
    rate: float = 4e-3
    copies: int = 3
    sandwich: bool = True
    static: Mode | None = None
    seed: int = 0
    threads: int = 1
    recalibration: int = 12

    def modes(self, members: int, draw: np.random.Generator) -> list[Mode]:
        """The modes of one step."""
        if self.static is not None:
            return [self.static]
        every = modes_of(members)
        found = [every[0], every[-1]] if self.sandwich else []
        count = min(max(self.copies - len(found), 0), len(every))
        drawn = draw.choice(len(every), count, replace=False)
        return [*found, *(every[int(at)] for at in drawn)]


def distil(
    teacher: Teacher,
    student: Student,
    pictures: Pictures,
    how: Distilling,
    say: Callable[[str], None] = lambda text: None,
) -> Student:
    """Train `student` to give `teacher` its features from what was sent; pictures u8 [n, side, side, 3].

    Raises FloatingPointError when the loss is no number any more.
    """
    torch.set_num_threads(how.threads)
    keep_freed_memory()
    measures(teacher, False)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    student.measures(True)
    draw = np.random.default_rng([how.seed, 1])
    optimizer = torch.optim.Adam(student.parameters(), lr=how.rate)
    losses: list[float] = []
    for step in range(how.steps):
        for group in optimizer.param_groups:
            group["lr"] = how.rate * _cosine(step, how.steps)
        x = normed(turned(pictures[draw.integers(0, len(pictures), how.rows)], draw))
        with torch.no_grad():
            split = teacher.head_of(x)
            wanted = [split, *teacher.rest(split)]
            scales = [1 / each.var().clamp(min=1e-6) for each in wanted]
        chosen = how.modes(student.net.members, draw)
        made = student.outputs(x, max(k for k, _ in chosen))
        total = torch.zeros(())
        for k, b in chosen:
            found = student.decode(student.sent(torch.stack(made[:k]).sum(0), b), (k, b))
            stages = [found, *teacher.rest(found)]
            for one, other, scale in zip(stages, wanted, scales, strict=True):
                total = total + scale * functional.mse_loss(one, other)
        if not torch.isfinite(total):
            raise FloatingPointError(f"the loss of step {step + 1} is {float(total)}; lower the rate")
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()) / len(chosen))
        if (step + 1) % 50 == 0:
            say(f"step {step + 1} of {how.steps}: error {np.mean(losses[-50:]):.3f}")
    recalibrate(student, pictures, how)
    return student


def _cosine(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))


def turned(pictures: Pictures, draw: np.random.Generator) -> Pictures:
    """Each picture turned left to right, or not."""
    made = pictures.copy()
    flip = draw.random(len(pictures)) < 0.5
    made[flip] = made[flip, :, ::-1]
    return made


def recalibrate(student: Student, pictures: Pictures, how: Distilling) -> None:
    """Statistics of all norms anew: plain means over batches, of the decoder's for each mode."""
    draw = np.random.default_rng([how.seed, 2])
    count = how.recalibration
    batches = [normed(pictures[draw.integers(0, len(pictures), 64)]) for _ in range(count)]
    student.measures(True)
    for each in student.modules():
        if isinstance(each, Norm):
            each.reset_running_stats()
    members = [each for each in student.members.modules() if isinstance(each, Norm)]
    for number, x in enumerate(batches):
        for own in members:
            own.momentum = 1 / (number + 1)
        student.outputs(x, student.net.members)
    student.measures(False)
    decoders = [each for each in student.norms if isinstance(each, ModeNorm)]
    every = [how.static] if how.static is not None else modes_of(student.net.members)
    with torch.no_grad():
        made = [student.outputs(x, student.net.members) for x in batches]
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
                student.decode(student.sent(torch.stack(outputs[: mode[0]]).sum(0), mode[1]), mode)
    student.measures(False)


def tensors_of(teacher: Teacher, student: Student) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Every tensor of a split network by the names of its pack, f32."""
    found = {name: tensor for name, tensor in teacher.state_dict().items() if "num_batches" not in name}
    for at, members in enumerate(student.members):
        for number, layer in enumerate(record.member()):
            held = members[number].state_dict()  # type: ignore[index]
            found |= {
                f"members.{at}.{layer.name}.{name}": tensor
                for name, tensor in held.items()
                if "num_batches" not in name
            }
    first, body = record.decoder()
    for unit, conv, norm in zip((first, *body), student.convs, student.norms, strict=True):
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, ModeNorm)
        at_ = f"decoder.{unit.name}"
        found |= {f"{at_}.conv.weight": conv.weight, f"{at_}.norm.weight": norm.weight}
        found |= {f"{at_}.norm.bias": norm.bias, f"{at_}.norm.means": norm.mean}
        found[f"{at_}.norm.variances"] = norm.variance
    found["clips"] = student.log_clips.exp()
    return {name: tensor.detach().contiguous().numpy().astype(np.float32) for name, tensor in found.items()}


def modules_of(
    net: SplitNet, tensors: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]], **how: Any
) -> tuple[Teacher, Student]:
    """Teacher and student with the tensors of a pack; `how` goes to `Student`. With one set of statistics for
    all modes these are the first mode's, until they are taken anew."""
    teacher, student = Teacher(net), Student(net, **how)
    own = {name: tensor for name, tensor in teacher.state_dict().items() if "num_batches" not in name}
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(_tensor(tensors[name]))
        for at, members in enumerate(student.members):
            for number, layer in enumerate(record.member()):
                for name, tensor in members[number].state_dict().items():  # type: ignore[index]
                    if "num_batches" not in name:
                        tensor.copy_(_tensor(tensors[f"members.{at}.{layer.name}.{name}"]))
        first, body = record.decoder()
        for unit, conv, norm in zip((first, *body), student.convs, student.norms, strict=True):
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, ModeNorm)
            at_ = f"decoder.{unit.name}"
            conv.weight.copy_(_tensor(tensors[f"{at_}.conv.weight"]))
            norm.weight.copy_(_tensor(tensors[f"{at_}.norm.weight"]))
            norm.bias.copy_(_tensor(tensors[f"{at_}.norm.bias"]))
            norm.mean.copy_(_tensor(tensors[f"{at_}.norm.means"])[: len(norm.mean)])
            norm.variance.copy_(_tensor(tensors[f"{at_}.norm.variances"])[: len(norm.variance)])
        student.log_clips.copy_(_tensor(tensors["clips"]).log())
    student.measures(False)
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return teacher.to(memory_format=torch.channels_last).eval(), student  # type: ignore[call-overload]


def _tensor(array: np.ndarray[Any, np.dtype[np.float32]]) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))
