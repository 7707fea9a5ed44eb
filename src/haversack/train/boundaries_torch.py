"""The boundary predictor as PyTorch functions of its tensors, and its training.

Paper: Xiong et al. (arXiv 2510.24606); the loss is focal cross-entropy (Lin et al., "Focal Loss for Dense
Object Detection", 2017) with gamma 2 and positives weighing 1.3 times.
What is here: the arithmetic of run/attention/_predictor.py, differentiable; Adam, one step a document after
the losses of all its layers were added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from torch import Tensor

from haversack.run.attention._predictor import EPS, shapes

if TYPE_CHECKING:
    from haversack.train.boundaries import Lesson

F32 = npt.NDArray[np.float32]
GAMMA, POSITIVE = 2.0, 1.3


def initial(channels: int, seed: int) -> dict[str, Tensor]:
    """Tensors of a predictor before training: matrices N(0, 1 / inputs), biases 0, the norm 1."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes(channels).items():
        if len(shape) == 2:
            found[name] = torch.randn(shape, generator=generator) * shape[1] ** -0.5
        else:
            found[name] = torch.ones(shape) if name == "norm.weight" else torch.zeros(shape)
    return {name: tensor.requires_grad_() for name, tensor in found.items()}


def logits_of(tensors: Mapping[str, Tensor], keys: Tensor, heads: int, window: int) -> Tensor:
    """Logits [n] of the gaps behind keys [n, channels]."""
    size, channels = 2 * window, keys.shape[1]
    padded = functional.pad(keys, (0, 0, window - 1, window))
    parts = functional.linear(padded, tensors["inputs.weight"], tensors["inputs.bias"])
    windows = parts.unfold(0, size, 1).transpose(1, 2).unflatten(-1, (3, heads, channels // heads))
    query, key, value = (each.transpose(1, 2) for each in windows.unbind(2))
    mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)
    out = functional.linear(mixed, tensors["output.weight"], tensors["output.bias"])
    normal = functional.layer_norm(out, (channels,), tensors["norm.weight"], tensors["norm.bias"], EPS)
    left, right = normal[:, :window].mean(1), normal[:, window:].mean(1)
    cosine = functional.cosine_similarity(left, right, dim=1, eps=1e-8)
    features = torch.cat([left, right, (left - right).abs(), left * right, cosine[:, None]], dim=1)
    inner = functional.relu(functional.linear(features, tensors["first.weight"], tensors["first.bias"]))
    return functional.linear(inner, tensors["second.weight"], tensors["second.bias"])[:, 0]


def focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over gaps of weight * (1 - p)^gamma * -log p, p being what the label was given."""
    signed = torch.where(labels, logits, -logits)
    p = torch.sigmoid(signed)
    weight = torch.where(labels, POSITIVE, 1.0)
    return (weight * (1 - p) ** GAMMA * -functional.logsigmoid(signed)).mean()


def fit(
    documents: Sequence[Sequence[Lesson]],
    channels: int,
    heads: int,
    window: int,
    passes: int,
    rate: float,
    seed: int,
) -> dict[str, F32]:
    """The tensors of a predictor after `passes` over the documents, in an order drawn anew each time."""
    tensors = initial(channels, seed)
    optimizer = torch.optim.Adam(tensors.values(), lr=rate)
    order = np.random.default_rng(seed)
    for _ in range(passes):
        for index in order.permutation(len(documents)):
            total = torch.zeros(())
            for lesson in documents[index]:
                valid = torch.from_numpy(lesson.valid)
                if not lesson.valid.any():
                    continue
                logits = logits_of(tensors, torch.from_numpy(lesson.keys), heads, window)
                total = total + focal_loss(logits[valid], torch.from_numpy(lesson.labels)[valid])
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if not math.isfinite(float(total.detach())):
                raise FloatingPointError("the loss of the boundary predictor is not finite; lower the rate")
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}
