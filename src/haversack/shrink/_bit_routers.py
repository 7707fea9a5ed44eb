"""Training D2MoE's bit routers: what is asked, checked before PyTorch is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import MissingExtraError, UserError

if TYPE_CHECKING:
    from haversack.run._levels import BitRouters


def checked_capacity(shares: Sequence[float], given: Any, levels: int) -> tuple[float, ...]:
    """`shares`, one for each of `levels` levels, none below 0, whose sum is 1. Raises UserError if not."""
    even = "/".join(f"{1 / levels:.4g}" for _ in range(levels))
    if len(shares) != levels:
        raise UserError(
            f"capacity={given} has {len(shares)} shares for {levels} levels; use {even}.",
            field="capacity",
            given=str(given),
            nearest=even,
        )
    total = sum(shares)
    if not all(share >= 0 for share in shares) or not abs(total - 1) <= 1e-6:
        raise UserError(
            f"the shares of capacity={given} sum to {total:.6g}, not to 1, or one is below 0; use {even}.",
            field="capacity",
            given=str(given),
            nearest=even,
        )
    return tuple(shares)


def train_bit_router(
    source: Any,
    walk: Any,
    experts: Any,
    made: Mapping[str, Any],
    texts: NDArray[np.int32],
    *,
    target_bits: float | None = None,
    capacity: Sequence[float] | None = None,
    alpha: float | None = None,
    steps: int = 300,
    seed: int = 0,
) -> BitRouters:
    """Bit routers for the nested experts `made` (matrix -> NestedTensor) of the model `source`, trained on
    `texts` i32 [pieces, length] to give what the model in full precision gives.

    `target_bits`: the mean bits that are read, reached on `texts`; else `alpha` weighs the mean bits in the
    loss. `capacity`: the share of a layer's choices that may take each level while training; what is above is
    dropped. Raises UserError for neither target nor alpha, and MissingExtraError without PyTorch.
    """
    levels = {len(tensor.bits) for tensor in made.values()}
    if len(levels) != 1:
        raise UserError("bit routers need experts with the same levels.", field="model")
    if capacity is not None:
        checked_capacity(capacity, capacity, levels.pop())
    if target_bits is None and alpha is None:
        raise UserError("bit routers are trained for target_bits or with alpha.", field="target_bits")
    try:
        from haversack.shrink import _bit_router_torch
    except ImportError as error:
        raise MissingExtraError("training bit routers", "torch", "workshop") from error
    training = _bit_router_torch.Training(source, walk, experts, made, capacity, seed)
    return training.run(texts, target_bits, alpha, steps)
