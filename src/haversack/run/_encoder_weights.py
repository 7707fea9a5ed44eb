"""Where an encoder's weights live, and the layout that its float matrices take there."""

from __future__ import annotations

from typing import Any

from haversack.core.pack import TensorSource
from haversack.models.language._encoder import EncoderArchitecture
from haversack.run._weights import bind, nbytes

RESIDENCIES = ("mapped", "copied")


def load(source: TensorSource, architecture: EncoderArchitecture, residency: str) -> dict[str, Any]:
    """The architecture's tensors as kernels take them."""
    return bind(source, architecture.tensors())


def planned_weights(
    source: TensorSource, architecture: EncoderArchitecture, residency: str
) -> tuple[tuple[str, int], ...]:
    """(label, bytes) of what `load` will hold."""
    return ((f"weights, {residency}", nbytes(source, architecture.tensors())),)
