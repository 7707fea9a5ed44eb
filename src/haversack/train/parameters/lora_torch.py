"""LoRA in PyTorch: the factors as parameters, and the change they make on the way through a block.

Paper: Hu et al. (arXiv 2106.09685); see lora.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from haversack.models._adapter import Pair
from haversack.models._adapter_torch import Beside, Factors

if TYPE_CHECKING:
    from haversack.train.parameters.lora import Lora


class LoraLearned:
    """The factors of one training; see train/_slots.py."""

    def __init__(
        self, method: Lora, chosen: Mapping[str, tuple[int, int, int]], seed: int, device: Any
    ) -> None:
        from haversack.train.parameters.lora import drawn

        self.scale = method.alpha / method.rank
        self.chosen = dict(chosen)
        self.blocks = tuple(sorted({block for block, _, _ in chosen.values()}))
        self.module = nn.Module()
        shapes = {name: (outputs, inputs) for name, (_, outputs, inputs) in chosen.items()}
        for name, first in drawn(shapes, method.rank, seed).items():
            second = torch.zeros(shapes[name][0], method.rank)
            for half, values in (("A", torch.from_numpy(first)), ("B", second)):
                self.module.register_parameter(_parameter(name, half), nn.Parameter(values.to(device)))
        held = dict(self.module.named_parameters())
        self.hooks = Beside(
            {
                name: (held[_parameter(name, "A")], held[_parameter(name, "B")], self.scale)
                for name in self.chosen
            }
        )

    def pairs(self, parameters: Mapping[str, Tensor]) -> dict[str, Pair]:
        """See AdapterInTraining."""
        found = {}
        for name, (block, _, _) in self.chosen.items():
            first, second = (_floats(parameters[_parameter(name, half)]) for half in "AB")
            found[name] = Pair(name, block, first, second, self.scale)
        return found


def perturbation(
    weights: Mapping[str, Tensor], names: list[str], norm: float, rank: int, generator: torch.Generator
) -> Factors:
    """A random change of rank `rank` for each matrix of `names`, whose Frobenius norm is `norm` times the
    matrix's."""
    found: dict[str, tuple[Tensor, Tensor, float]] = {}
    for name in names:
        matrix = weights[name].float()
        second = torch.randn(matrix.shape[0], rank, generator=generator).to(matrix.device)
        first = torch.randn(rank, matrix.shape[1], generator=generator).to(matrix.device)
        # |B A|^2 = trace((B^T B) (A A^T)): only rank x rank numbers
        size = ((second.T @ second) * (first @ first.T)).sum().clamp_min(1e-30).sqrt()
        found[name] = (first, second, float(norm * matrix.norm() / size))
    return found


def _parameter(name: str, half: str) -> str:
    """A parameter's name: PyTorch allows no dots."""
    return f"{name.replace('.', '/')}#{half}"


def _floats(tensor: Tensor) -> Any:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), np.float32)
