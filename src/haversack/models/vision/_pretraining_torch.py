"""Training a small network of inverted residual blocks from nothing, on pictures that fit into memory.

What is here: SGD with Nesterov momentum on smoothed labels; pictures are turned left to right by half and
moved by up to an eighth of their side; the rate rises for a tenth of the steps and falls evenly to zero.
Matrices and kernels decay; scales and shifts of norms and biases do not: a scale that decays makes what an
activation sees smaller from step to step, whatever the pictures are.
Deterministic for its seed, its machine type and its number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional

from haversack.models._train_loop_torch import keep_freed_memory
from haversack.models.vision._inverted_residual_torch import PictureModule
from haversack.models.vision._record import PictureNet

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pretraining:
    """How long and how fast."""

    epochs: int = 14
    rows: int = 64
    rate: float = 0.12
    momentum: float = 0.9
    decay: float = 5e-4
    smoothing: float = 0.1
    warm_up: float = 0.1
    seed: int = 0
    threads: int = 2

    def rate_at(self, step: int, steps: int) -> float:
        """The rate of `step` of `steps`."""
        warm = max(1.0, self.warm_up * steps)
        return self.rate * min((step + 1) / warm, (steps - step) / (steps - warm))


def pretrain(
    record: PictureNet,
    pictures: U8,
    labels: I64,
    how: Pretraining,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors of `record` after training on pictures u8 [n, size, size, 3] and class numbers [n].

    Raises FloatingPointError when the loss is no number any more.
    """
    torch.set_num_threads(how.threads)
    keep_freed_memory()
    module = PictureModule(record)
    module.initialize(how.seed)
    for unit in module.units().values():
        unit.norm.measures = True
    draw = np.random.default_rng(how.seed)
    groups = [
        {"params": [each for each in module.parameters() if each.ndim > 1], "weight_decay": how.decay},
        {"params": [each for each in module.parameters() if each.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=how.rate, momentum=how.momentum, nesterov=True)
    each = len(labels) // how.rows
    steps = how.epochs * each
    for epoch in range(how.epochs):
        order = draw.permutation(len(labels))
        losses = []
        for number in range(each):
            chosen = order[number * how.rows : (number + 1) * how.rows]
            for group in optimizer.param_groups:
                group["lr"] = how.rate_at(epoch * each + number, steps)
            x = module.normed(moved(pictures[chosen], draw))
            loss = functional.cross_entropy(
                module(x), torch.from_numpy(labels[chosen]), label_smoothing=how.smoothing
            )
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss of epoch {epoch + 1} is {float(loss)}; lower the rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        say(f"epoch {epoch + 1} of {how.epochs}: loss {np.mean(losses):.3f}")
    return {name: np.array(array) for name, array in module.arrays().items()}


def moved(pictures: U8, draw: np.random.Generator) -> U8:
    """Each picture turned left to right or not, and moved by up to an eighth of its side over black."""
    count, side = len(pictures), pictures.shape[1]
    reach = side // 8
    padded = np.pad(pictures, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    made = np.empty_like(pictures)
    places = draw.integers(0, 2 * reach + 1, (count, 2))
    turned = draw.random(count) < 0.5
    for index, (top, left) in enumerate(places):
        cut = padded[index, top : top + side, left : left + side]
        made[index] = cut[:, ::-1] if turned[index] else cut
    return made


def accuracy(module: PictureModule, pictures: U8, labels: I64, rows: int = 250) -> float:
    """The share of pictures whose class has the largest logit, statistics fixed."""
    right = 0
    with torch.no_grad():
        for start in range(0, len(labels), rows):
            logits = module(module.normed(pictures[start : start + rows]))
            right += int((logits.argmax(1).numpy() == labels[start : start + rows]).sum())
    return right / len(labels)


def module_of(record: PictureNet, tensors: dict[str, Any]) -> PictureModule:
    """The module with these tensors."""
    module = PictureModule(record)
    module.load(tensors)
    return module
