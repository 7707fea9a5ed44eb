"""CATS: the feed-forward layer skips what its gate makes small; the baseline of R-Sparse.

Paper: Lee et al., "CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models" (2024).
What is here: of every gated feed-forward layer, h = silu(gate x) * (up x) where |silu(gate x)| is above a
threshold, else 0. The threshold of a layer is the quantile `share` of |silu(gate x)| on calibration text.
Attention stays dense. Of `up` a token then needs only the rows, of `down` only the columns, of what is left:
the share of all weights that a model skips is `model_sparsity`.
What we changed: thresholds are found block after block, on inputs that come through the blocks before.
Cost: the gate in full; `down` by columns. `up` is computed in full (see run/forms/gated.py): quality is that
of the method, the time saved is `down`'s alone.
Limits: a model cannot skip more than its `up` and `down`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter

F32 = NDArray[np.float32]


def gate_threshold(gated: F32, share: float) -> float:
    """The quantile `share` of |gated|, which is silu(gate x) f32 [tokens, width]."""
    return float(np.quantile(np.abs(gated), share)) if share else 0.0


def model_sparsity(share: float, skipped: int, total: int) -> float:
    """The share of `total` weights that are not read when the share `share` of the inner numbers is skipped;
    `skipped`: weights of all `up` and `down`."""
    return share * skipped / total


def share_of(sparsity: float, skipped: int, total: int) -> float:
    """The inverse of `model_sparsity`. Raises UserError for a sparsity beyond what the model can skip."""
    most = skipped / total
    if not 0 <= sparsity <= most:
        raise UserError(
            f"sparsity={sparsity:g} is beyond what CATS can skip of this model, {most:.3f}: its up and down "
            "matrices.",
            field="sparsity",
            given=sparsity,
            nearest=round(most, 3),
        )
    return sparsity / most


def weights_of(shapes: Mapping[str, tuple[int, int]], skipped: set[str]) -> tuple[int, int]:
    """Weights of the matrices `skipped`, and of all in `shapes`."""
    sizes = {name: rows * columns for name, (rows, columns) in shapes.items()}
    return sum(sizes[name] for name in skipped), sum(sizes.values())


@dataclass(frozen=True)
class Cats(Method):
    name = "cats"
    stage = "shrink"
    slot = "structure"
    paper = "Lee et al., CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models (2024)"
    summary = "The feed-forward layer skips what its gate makes small; attention stays dense."
    system = 45
    provides = frozenset({"weight-type:row-sparse", "weight-layout:columns-1"})

    sparsity: float = parameter(0.2, help="share of all the blocks' weights that a token does not need")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sparsity < 1:
            raise UserError(
                f"sparsity={self.sparsity} is no share; give a number from 0 to below 1.",
                field="sparsity",
                given=str(self.sparsity),
                nearest=0.2,
            )
