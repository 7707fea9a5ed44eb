"""The slots of stage train, as protocols: a training is one choice of each, and knows methods only so.

`parameters` says what learns and how it changes the model. The other slots have one way each so far:
`gradient` is backpropagation with AdamW, `precision` f32 or bf16 products, `aggregation` alone. A method that
brings another way adds its protocol here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from haversack.models._adapter import Pair
from haversack.models._architecture import Architecture


@runtime_checkable
class Learned(Protocol):
    """What learns in one model: made by `Parameters.begin`."""

    module: Any
    """An nn.Module; its parameters are what learns."""
    hooks: Any
    """Of models/_blocks_torch.py: how the parameters change a pass through the model."""
    blocks: tuple[int, ...]
    """The blocks that change, rising; nothing below the first needs a gradient."""

    def pairs(self, parameters: Mapping[str, Any]) -> dict[str, Pair]:
        """The change that `parameters` (tensors by the module's names) are, as a LoRA."""


@runtime_checkable
class Parameters(Protocol):
    """A method of the slot parameters."""

    def chosen(self, architecture: Architecture, above: int) -> dict[str, tuple[int, int, int]]:
        """Matrix name -> (block, outputs, inputs) of what changes, none of it in the lowest `above` blocks.

        Raises UserError when the method's own parameters ask for one of these.
        """

    def learned_numbers(self, architecture: Architecture, above: int) -> int:
        """How many numbers learn."""

    def begin(self, architecture: Architecture, above: int, seed: int, device: Any) -> Learned:
        """Fresh parameters that change nothing yet. Raises MissingExtraError without PyTorch."""
