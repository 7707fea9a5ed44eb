"""The plain training loop: Muon for matrices, AdamW for the rest, checkpoints that resume to the same bits.

A run is a list of stages (steps, rows, length). What step ``i`` reads and does depends only on the seed and
``i``, and a checkpoint holds every tensor the optimizers carry, so a run that was killed and resumed ends
with the weights of one that was not (same machine type, same number of threads).
Muon: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with momentum in
Nesterov's form and the update scaled by sqrt(max(1, rows / columns)).
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[int], Tensor]


@dataclass(frozen=True)
class Schedule:
    """Learning rates and their course over ``steps``: linear warm-up, constant, linear descent to zero."""

    steps: int
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    warm_up_steps: int = 50
    descent_share: float = 0.6
    matrix_decay: float = 0.02
    momentum: float = 0.95

    def factor(self, step: int) -> float:
        """What the learning rates are multiplied with in ``step``."""
        warm = min(1.0, (step + 1) / self.warm_up_steps)
        descent = (self.steps - step) / max(1.0, self.steps * self.descent_share)
        return min(warm, descent, 1.0)


def compute_type(device: torch.device) -> torch.dtype:
    """What matrices are multiplied in: bfloat16, or float32 on a CPU that would only emulate it, which takes
    some forty times as long."""
    emulated = device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.float32 if emulated else torch.bfloat16


def computing(device: torch.device) -> torch.autocast:
    """The context in which a model computes in ``compute_type(device)``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=compute_type(device) == torch.bfloat16)


def orthogonalized(matrices: Tensor, iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to each of ``matrices`` [n, rows, columns], by Newton-Schulz steps.

    The quintic's coefficients are those of the Muon paper: singular values end between 0.7 and 1.2, which
    suffices.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(compute_type(matrices.device))
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon:
    """Momentum, then orthogonalized; matrices of one shape are handled together."""

    def __init__(self, matrices: Iterable[nn.Parameter], schedule: Schedule) -> None:
        self.schedule = schedule
        groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            groups[matrix.shape].append(matrix)
        self.groups = list(groups.values())
        self.momenta = [
            torch.zeros(len(group), *group[0].shape, device=group[0].device) for group in self.groups
        ]

    @torch.no_grad()
    def step(self, factor: float, momentum: float) -> None:
        rate = self.schedule.matrix_rate * factor
        for group, average in zip(self.groups, self.momenta, strict=True):
            gradients = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            average.lerp_(gradients, 1 - momentum)
            rows, columns = group[0].shape
            update = orthogonalized(gradients.lerp_(average, momentum)) * max(1.0, rows / columns) ** 0.5
            for matrix, change in zip(group, update, strict=True):
                matrix.mul_(1 - rate * self.schedule.matrix_decay).add_(change, alpha=-rate)
                matrix.grad = None


class Trainer:
    """Steps, checkpoints, a log and an average of the weights over the last part of the run.

    ``muon`` False leaves matrices to AdamW too: the factors of low-rank changes are no maps between channels.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        folder: Path,
        average_half_life_steps: float,
        *,
        muon: bool = True,
    ) -> None:
        self.model, self.schedule, self.folder = model, schedule, folder
        self.average_keep = 0.5 ** (1.0 / average_half_life_steps)
        named = dict(model.named_parameters())
        matrices = {
            name for name, value in named.items() if muon and value.ndim == 2 and "embed_" not in name
        }
        self.muon = Muon([named[name] for name in sorted(matrices)], schedule)
        others = [value for name, value in named.items() if name not in matrices]
        self.adam = torch.optim.AdamW(others, lr=schedule.other_rate, betas=(0.9, 0.95), weight_decay=0.0)
        self.average = {name: value.detach().clone() for name, value in named.items()}
        self.done_steps = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def checkpoint(self) -> Path:
        """Write the whole state; the previous checkpoint is replaced only when the new one is on the disk."""
        path, partial = self.folder / "state.pt", self.folder / "state.pt.partial"
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "momenta": self.muon.momenta,
            "adam": self.adam.state_dict(),
            "done_steps": self.done_steps,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }
        with partial.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        return path

    def resume(self) -> bool:
        """Load the checkpoint if there is one."""
        path = self.folder / "state.pt"
        if not path.is_file():
            return False
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.muon.momenta = state["momenta"]
        self.adam.load_state_dict(state["adam"])
        self.done_steps, self.seconds = state["done_steps"], state["seconds"]
        self.cpu_seconds = state.get("cpu_seconds", 0.0)
        return True

    def step(self, loss_of_step: Loss) -> Tensor:
        """One update; ``loss_of_step(step)`` computes the loss to descend."""
        step = self.done_steps
        factor = self.schedule.factor(step)
        loss = loss_of_step(step)
        loss.backward()
        for group in self.adam.param_groups:
            group["lr"] = self.schedule.other_rate * factor
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        warm = min(1.0, step / 300)
        self.muon.step(factor, 0.85 + (self.schedule.momentum - 0.85) * warm)
        keep = min(self.average_keep, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                self.average[name].lerp_(value, 1 - keep)
        self.done_steps += 1
        return loss.detach()

    def run(
        self,
        loss_of_step: Loss,
        checkpoint_seconds: float = 240.0,
        report: Callable[[dict[str, Any]], None] | None = None,
        stop_after: int | None = None,
    ) -> None:
        """Train to the end of the schedule (or to ``stop_after`` steps), resuming what was begun."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        saved = time.monotonic()
        goal = min(self.schedule.steps, stop_after or self.schedule.steps)
        while self.done_steps < goal:
            began, cpu_began = time.monotonic(), time.process_time()
            loss = float(self.step(loss_of_step))
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss of step {self.done_steps} is {loss}; lower the learning rates"
                )
            took = time.monotonic() - began
            self.seconds += took
            self.cpu_seconds += time.process_time() - cpu_began
            if report is not None:
                report(
                    {
                        "step": self.done_steps,
                        "loss": loss,
                        "step_seconds": took,
                        "seconds": self.seconds,
                        "cpu_seconds": self.cpu_seconds,
                    }
                )
            if time.monotonic() - saved > checkpoint_seconds:
                self.checkpoint()
                saved = time.monotonic()
        self.checkpoint()


def log_to(path: Path, every_steps: int = 20) -> Callable[[dict[str, Any]], None]:
    """A report function that appends the mean of ``every_steps`` steps to a JSON-lines file and prints it."""
    recent: list[dict[str, Any]] = []

    def report(record: dict[str, Any]) -> None:
        recent.append(record)
        if record["step"] % every_steps and record["step"] != 1:
            return
        line = {
            "step": record["step"],
            "loss": round(sum(item["loss"] for item in recent) / len(recent), 4),
            "step_seconds": round(sum(item["step_seconds"] for item in recent) / len(recent), 3),
            "minutes": round(record["seconds"] / 60, 2),
            "cpu_minutes": round(record["cpu_seconds"] / 60, 2),
        }
        recent.clear()
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    return report


def keep_freed_memory() -> None:
    """Tell glibc to reuse big blocks instead of returning them; page faults are slow."""
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library; only speed is lost
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 256 << 20)


class CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of hidden @ weight.T in pieces of rows, so that all logits never exist at once.

    hidden [n, width], weight [vocabulary, width], targets [n]; gradients are computed on the way forward.
    """

    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int = 2048) -> Tensor:
        compute = torch.bfloat16 if hidden.dtype == torch.bfloat16 else torch.float32
        narrow = weight.to(compute)
        total = hidden.new_zeros((), dtype=torch.float32)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight)
        for start in range(0, hidden.shape[0], rows):
            piece, target = hidden[start : start + rows].to(compute), targets[start : start + rows, None]
            logits = (piece @ narrow.T).float()
            normalizer = logits.logsumexp(-1, keepdim=True)
            total += (normalizer - logits.gather(1, target)).sum()
            probabilities = logits.sub_(normalizer).exp_()
            probabilities.scatter_add_(1, target, torch.full_like(target, -1, dtype=torch.float32))
            difference = probabilities.div_(hidden.shape[0]).to(compute)
            hidden_gradient[start : start + rows] = difference @ narrow
            weight_gradient += difference.T @ piece
        context.save_for_backward(hidden_gradient, weight_gradient)
        return total / hidden.shape[0]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = context.saved_tensors
        return gradient * hidden_gradient, gradient * weight_gradient, None, None
