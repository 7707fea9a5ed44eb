"""What a low-rank adapter adds on the way through a block, unmerged, in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from haversack.models._blocks_torch import Hooks, Point

Factors = Mapping[str, tuple[Tensor, Tensor, float]]
"""Matrix name -> A [rank, inputs], B [outputs, rank], scale."""


class Beside(Hooks):
    """Adds scale x B A x to what each matrix of `factors` gives: the unmerged form. The bias is not
    touched."""

    def __init__(self, factors: Factors) -> None:
        self.factors = factors
        self._inputs: dict[str, Tensor] = {}

    def activation(self, point: Point, tensor: Tensor) -> Tensor:
        """See Hooks."""
        if point.name not in self.factors:
            return tensor
        if point.place == "input":
            self._inputs[point.name] = tensor
        elif point.place == "output":
            first, second, scale = self.factors[point.name]
            x = self._inputs.pop(point.name)
            added = nn.functional.linear(nn.functional.linear(x, first), second)
            return tensor + scale * added
        return tensor
