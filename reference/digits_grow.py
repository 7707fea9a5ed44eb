"""A larger Whisper that begins as a smaller one: the same function, with room to learn more.

Chen, Goodfellow and Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer" (2016), for pre-norm
transformers with heads of one width. New channels of the residual stream are written by nothing yet (zeros)
and read by random weights; new heads and feed-forward units compute something random and are read by nothing
yet; new blocks add nothing. A layer norm over more channels divides by less: its gain makes that good. It
would be exact if the mean over the stream's channels were zero; it nearly is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from digits_recipe import Shape

HEAD = 32
INTO_STREAM = ("out_proj.weight", "fc2.weight")  # rows are channels of the stream, columns are not
FROM_STREAM = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "fc1.weight")
DEVIATION = 0.02


def grown(
    weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], small: Shape, generator: torch.Generator
) -> dict[str, Tensor]:
    """Tensors of the shapes in `wanted`, in which those of the `small` model do what they did."""
    widest = max(value.shape[0] for name, value in wanted.items() if name.endswith("layer_norm.weight"))
    gain = math.sqrt(small.width / widest)
    found = {}
    for name, goal in wanted.items():
        new = torch.zeros(goal.shape)
        old = weights.get(name)
        if old is None:  # a tensor of a new block
            new = new_block_tensor(name, goal, generator)
        else:
            if name.endswith(FROM_STREAM):
                new.normal_(0.0, DEVIATION, generator=generator)
                new[: old.shape[0], : old.shape[1]] = old
                new[: old.shape[0], old.shape[1] :].normal_(0.0, DEVIATION, generator=generator)
            elif name.endswith("conv1.weight"):
                new.normal_(0.0, 1 / math.sqrt(goal.shape[1] * goal.shape[2]), generator=generator)
            elif name == "alignment.weight":
                new.normal_(0.0, DEVIATION, generator=generator)
            elif name.endswith("layer_norm.weight"):
                new.fill_(gain)
                old = old * gain
            new[tuple(slice(size) for size in old.shape)] = old
        found[name] = new
    return found


def new_block_tensor(name: str, goal: Tensor, generator: torch.Generator) -> Tensor:
    """Of a block that adds nothing: its last matrices are zeros, the others random."""
    if name.endswith("layer_norm.weight"):
        return torch.ones(goal.shape)
    if name.endswith(INTO_STREAM) or goal.ndim == 1:
        return torch.zeros(goal.shape)
    return torch.empty(goal.shape).normal_(0.0, DEVIATION, generator=generator)
