"""The way to what learns a split encoder, which needs PyTorch."""

from __future__ import annotations

from typing import Any

from haversack.core.errors import MissingExtraError


def training() -> Any:
    """The module `_split_train_torch`. Raises MissingExtraError where PyTorch is absent."""
    try:
        from haversack.share import _split_train_torch
    except ImportError as error:
        raise MissingExtraError("training", error.name or "torch", "workshop") from error
    return _split_train_torch
