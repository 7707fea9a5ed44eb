"""Routers of mixtures of experts: which experts a token goes to, and the share of each in what it becomes.

Of every row of logits [n, experts] the `top` largest are chosen, the lower number first among equals; NaN
counts as the lowest. A share is a chosen logit's score: `softmax` over all logits or, with `chosen`, over the
chosen ones; or `sigmoid` of it alone. `normalized` shares are divided by their sum.
"""

from __future__ import annotations

import numpy as np

from haversack.core.errors import UserError, not_allowed
from haversack.kernels._arguments import check_array, refuse_arrays
from haversack.kernels._matrix import Array
from haversack.kernels._native import native

SCORINGS = ("softmax", "sigmoid")


def route_twin(logits: Array, top: int, scoring: str, chosen: bool, normalized: bool) -> tuple[Array, Array]:
    """The definition of `route`."""
    rated = np.where(np.isnan(logits), -np.inf, logits)
    experts = np.argsort(-rated, axis=1, kind="stable")[:, :top]
    kept = np.take_along_axis(logits, experts, axis=1).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if scoring == "softmax":
            largest = kept[:, :1]
            scored = kept if chosen else logits.astype(np.float64)
            shares = np.exp(kept - largest) / np.exp(scored - largest).sum(axis=1, keepdims=True)
        else:
            shares = 1 / (1 + np.exp(-kept))
        if normalized:
            shares = shares / shares.sum(axis=1, keepdims=True)
    return experts.astype(np.int32), shares.astype(np.float32)


def route(
    logits: Array, top: int, scoring: str = "softmax", *, chosen: bool = False, normalized: bool = False
) -> tuple[Array, Array]:
    """logits f32[n, experts] -> the chosen experts i32[n, top], the highest rated first, and their shares
    f32[n, top].

    Raises UserError for a shape or type that does not fit, for more chosen than experts, and for an unknown
    `scoring`.
    """
    module = native()
    if module is not None and scoring in SCORINGS and top > 0:
        rows = len(logits)
        experts, shares = np.empty((rows, top), np.int32), np.empty((rows, top), np.float32)
        if module.route(logits, SCORINGS.index(scoring), chosen, normalized, experts, shares):
            return experts, shares
    if scoring not in SCORINGS:
        raise not_allowed("scoring", scoring, SCORINGS)
    count = check_array("route", "logits", logits, (None, None)).shape[1]
    if not 1 <= top <= count:
        raise UserError(
            f"route: top={top} is outside 1 to the {count} experts",
            field="top",
            given=top,
            nearest=min(max(top, 1), count),
        )
    if module is not None:
        refuse_arrays("route")
    return route_twin(logits, top, scoring, chosen, normalized)
