"""The frozen network of a task: a checkpoint of a family that Haversack reads, or a small classifier trained
on the classes of a folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from haversack.share._codec_train_torch import Say, nothing

U8 = NDArray[np.uint8]
WIDTHS = (16, 32, 64, 96)


class SmallClassifier(nn.Module):
    """Four strided 3 x 3 convolutions with batch norm, the mean over places, a linear layer. Pictures [n, 3,
    h, w] within 0 .. 1, of any size."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in WIDTHS:
            layers += [nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body, self.head = nn.Sequential(*layers), nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(2 * x - 1).mean((2, 3)))
        return found


class Sampler:
    """Crops of pictures with the number of their class; each class as often as any other."""

    def __init__(self, classes: Sequence[Sequence[U8]], crop: int, batch: int) -> None:
        self.classes, self.crop, self.batch = classes, crop, batch

    def __call__(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Pictures within -1 .. 1 and labels."""
        labels = rng.integers(len(self.classes), size=self.batch)
        out = np.empty((self.batch, self.crop, self.crop, 3), np.uint8)
        for at, label in enumerate(labels):
            pictures = self.classes[label]
            one = pictures[int(rng.integers(len(pictures)))]
            top, left = (int(rng.integers(side - self.crop + 1)) for side in one.shape[:2])
            cut = one[top : top + self.crop, left : left + self.crop]
            out[at] = cut[:, ::-1] if rng.random() < 0.5 else cut
        return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.from_numpy(labels)


def train_classifier(
    sample: Sampler, steps: int = 400, rate: float = 3e-3, seed: int = 0, say: Say = nothing
) -> SmallClassifier:
    """Frozen and in eval mode when it comes back; colours and contrast vary a little on the way."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = SmallClassifier(len(sample.classes))
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-3)
    for step in range(steps):
        x, labels = sample(rng)
        gain = 1 + 0.1 * torch.randn(len(x), 3, 1, 1)
        x = ((x * gain + 0.05 * torch.randn(len(x), 3, 1, 1)).clamp(-1, 1) + 1) / 2
        loss = F.cross_entropy(network(x), labels, label_smoothing=0.05)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            say(f"classifier, step {step}: loss {loss.item():.3f}")
    return network.eval().requires_grad_(False)


def teacher_of(path: Path) -> tuple[nn.Module, int]:
    """A checkpoint's network as a frozen module of pictures within 0 .. 1, and its number of classes. Raises
    UserError for what is none that Haversack reads."""
    from haversack.models.vision._folder import read_checkpoint
    from haversack.models.vision._pretraining_torch import module_of

    record, tensors = read_checkpoint(path)
    return Frozen(module_of(record, tensors), record.mean, record.std), record.classifier.outputs


class Frozen(nn.Module):
    """A network behind the mean and deviation that it was trained with."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network((x - self.mean) / self.std)
        return found
