"""A small convolutional network in PyTorch behind the protocol, for tests of what works on any network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from haversack.train._meter_torch import SavedTensors
from haversack.train._network import Batch, Form, Pictures, Wanted


class SmallCnn:
    """Two convolutions with a norm's scale and shift, pooled, and a linear head; see Network."""

    def __init__(self, classes: tuple[str, ...] | None = ("dark", "light"), size: int = 12) -> None:
        self.name, self.classes, self.saved_nbytes = "small-cnn", classes, 0
        self.form: Form = Pictures(size, size)
        drawn = torch.Generator().manual_seed(5)

        def of(*shape: int) -> Tensor:
            return torch.randn(shape, generator=drawn) / np.prod(shape[1:]) ** 0.5

        self._held: dict[str, Tensor] = {
            "one.weight": of(6, 3, 3, 3),
            "one.bias": torch.zeros(6),
            "one.scale": torch.ones(6),
            "two.weight": of(8, 6, 3, 3),
            "two.bias": torch.zeros(8),
            "two.mean": torch.zeros(8),
            "head.weight": of(2, 8),
            "head.bias": torch.zeros(2),
        }

    def tensors(self) -> dict[str, Any]:
        return {name: tensor.detach().numpy() for name, tensor in self._held.items()}

    def roles(self) -> dict[str, Any]:
        kinds = {"weight": "weight", "bias": "bias", "scale": "scale", "mean": "statistic"}
        return {name: kinds[name.partition(".")[2]] for name in self._held}

    @property
    def blocks(self) -> dict[str, tuple[str, ...]]:
        return {
            block: tuple(name for name in self._held if name.startswith(f"{block}."))
            for block in ("one", "two", "head")
        }

    def new_head(self, classes: tuple[str, ...], seed: int) -> None:
        drawn = np.random.default_rng([seed, 1]).standard_normal((len(classes), 8)) * 0.1
        self._held["head.weight"] = torch.from_numpy(drawn.astype(np.float32))
        self._held["head.bias"] = torch.zeros(len(classes))
        self.classes = classes

    def _forward(self, inputs: Any) -> Tensor:
        w = self._held
        x = torch.from_numpy(np.ascontiguousarray(inputs)).permute(0, 3, 1, 2).float() / 128 - 1
        x = nn.functional.conv2d(x, w["one.weight"], w["one.bias"], padding=1)
        x = torch.relu(x * w["one.scale"][:, None, None])
        x = nn.functional.conv2d(x, w["two.weight"], w["two.bias"], padding=1, stride=2)
        x = torch.relu(x - w["two.mean"][:, None, None]).mean((2, 3))
        return nn.functional.linear(x, w["head.weight"], w["head.bias"])

    def logits(self, inputs: Any) -> Any:
        with torch.no_grad():
            return self._forward(inputs).numpy()

    def loss(self, batch: Batch) -> float:
        with torch.no_grad():
            return float(
                nn.functional.cross_entropy(self._forward(batch.inputs), torch.from_numpy(batch.labels))
            )

    def gradients(self, batch: Batch, wanted: Wanted) -> tuple[float, dict[str, Any]]:
        learning = {name: self._held[name].requires_grad_() for name in wanted}
        try:
            with SavedTensors(beside=self._held.values()) as saved:
                loss = nn.functional.cross_entropy(
                    self._forward(batch.inputs), torch.from_numpy(batch.labels)
                )
            self.saved_nbytes = saved.nbytes
            found = torch.autograd.grad(loss, list(learning.values()))
        finally:
            for tensor in learning.values():
                tensor.requires_grad_(False)
        gradients = {
            name: gradient.numpy() if part is None else part.of(gradient.numpy())
            for (name, part), gradient in zip(wanted.items(), found, strict=True)
        }
        return float(loss.detach()), gradients

    def plan(self, wanted: Wanted, rows: int) -> tuple[tuple[str, int], ...]:
        pixels = rows * 12 * 12
        lines = [("working set", 4 * pixels * 12)]
        if wanted:
            deep = any(name.startswith(("one.", "two.")) for name in wanted)
            lines.append(("saved for the way back", 4 * pixels * (20 if deep else 1)))
        return tuple(lines)


def shades(rows: int, seed: int = 0, size: int = 12) -> Batch:
    """Pictures that are darker or lighter than the middle, with noise."""
    drawn = np.random.default_rng(seed)
    labels = drawn.integers(0, 2, rows)
    middle = np.where(labels == 1, 170, 85)[:, None, None, None]
    inputs = np.clip(drawn.normal(middle, 30, (rows, size, size, 3)), 0, 255).astype(np.uint8)
    return Batch(inputs, labels.astype(np.int64))
