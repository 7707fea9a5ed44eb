"""Ranks of layers by the squared singular values they keep: where a budget of parameters is best spent."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping

import numpy as np

from haversack.core.errors import UserError
from haversack.shrink.structure.low_rank import TINY, Array, Shape


def energies(weight: Array) -> Array:
    """The squared singular values of W, largest first, f64."""
    return np.square(np.linalg.svd(weight.astype(np.float64), compute_uv=False))


def energy_ranks(
    spectra: Mapping[str, Array],
    shapes: Mapping[str, Shape],
    *,
    energy: float = 1.0,
    parameters: int | None = None,
) -> dict[str, int | None]:
    """The rank of each layer (None: stays dense) that keeps the share `energy` of its squared singular
    values, as far as `parameters` weights in all layers reach.

    Ranks are handed out where they keep most for a weight, so that layers with steep spectra get few. An
    error budget e is energy = 1 - e^2. Raises UserError for a share outside 0..1 and for a budget in which
    not every layer can have rank 1.
    """
    if not 0 < energy <= 1:
        raise UserError(
            f"energy={energy} is no share; give a number above 0 and up to 1.", field="energy", given=energy
        )
    least = sum(min(shape.factored(shape.groups), shape.dense) for shape in shapes.values())
    if parameters is not None and parameters < least:
        raise UserError(
            f"parameters={parameters} is too few: these {len(shapes)} layers need {least} at rank 1.",
            field="parameters",
            given=parameters,
            nearest=least,
        )
    spent, ranks = 0, dict.fromkeys(spectra, 0)
    kept = dict.fromkeys(spectra, 0.0)
    waiting: list[tuple[float, str, int, int, float]] = []

    def offer(name: str) -> None:
        """The next step of a layer: one rank more, or, where that saves nothing any more, all of it."""
        shape, values, rank = shapes[name], spectra[name], ranks[name]
        total = float(values.sum())
        enough = kept[name] >= energy * total * (1 - 1e-12) and rank > 0
        if enough or rank >= len(values):
            return
        following = rank + shape.groups
        cost = shape.factored(following)
        if cost >= shape.dense or following >= len(values):
            following, cost = len(values), shape.dense
        gain = float(values[rank:following].sum())
        worth = gain / max(total, TINY) / max(cost - shape.factored(rank), 1)
        first = -math.inf if rank == 0 else -worth  # every layer has rank 1 before any has more
        heapq.heappush(waiting, (first, name, following, cost - shape.factored(rank), gain))

    for name in spectra:
        offer(name)
    while waiting:
        _, name, following, cost, gain = heapq.heappop(waiting)
        if parameters is not None and spent + cost > parameters:
            continue
        spent, ranks[name], kept[name] = spent + cost, following, kept[name] + gain
        offer(name)
    return {name: None if rank >= len(spectra[name]) else rank for name, rank in ranks.items()}
