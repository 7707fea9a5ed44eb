"""What the keys around each gap of a text say about it: the features that DHSA's boundary predictor judges.

Around a gap lie `window` keys on either side. They attend to each other; the heads' sum passes a layer norm;
l and r are the means over the keys before the gap and behind it. A gap's features are l, r, |l - r|, l * r
and the cosine of l and r.
"""

from __future__ import annotations

import numpy as np

from haversack.kernels._arguments import check_array, refuse, refuse_arrays
from haversack.kernels._matrix import Array
from haversack.kernels._native import native
from haversack.kernels.norms import layer_norm_twin
from haversack.kernels.probabilities import softmax_twin

LEAST_LENGTH = 1e-8
"""The cosine's least divisor."""


def feature_width(channels: int) -> int:
    """Numbers of a gap's features, 4 channels + 1, and zeros up to a multiple of 16, which products like."""
    return -(-(4 * channels + 1) // 16) * 16


def gap_features(
    parts: Array, heads: int, window: int, bias: Array, weight: Array, shift: Array, eps: float
) -> Array:
    """parts f32[gaps + 2 window - 1, (2 + heads) c] -> f32[gaps, feature_width(c)], zeros behind the
    features.

    Row i of `parts` belongs to a key: its query (scaled) and its key, c numbers each, of all heads; and for
    each head the c numbers that it adds to the sum where all attention goes to this key. Gap i lies in the
    middle of the rows i .. i + 2 window - 1. `bias`, `weight` and `shift` f32[c] are added to the sum, and of
    the layer norm. Raises UserError for shapes and types that do not fit.
    """
    op, module = "gap_features", native()
    channels = len(check_array(op, "bias", bias, (None,)))
    gaps = len(parts) - 2 * window + 1
    if window < 1 or heads < 1 or channels < 1 or channels % heads or gaps < 1:
        refuse(
            op, "parts", f"of more than {2 * window - 1} keys of {heads} heads that share c numbers", parts
        )
    out = np.empty((gaps, feature_width(channels)), np.float32)
    if module is not None and module.gap_features(parts, heads, window, bias, weight, shift, eps, out):
        return out
    check_array(op, "parts", parts, (len(parts), (2 + heads) * channels))
    check_array(op, "weight", weight, (channels,))
    check_array(op, "shift", shift, (channels,))
    if module is not None:
        refuse_arrays(op)
    return gap_features_twin(parts, heads, window, bias, weight, shift, eps)


def gap_features_twin(
    parts: Array, heads: int, window: int, bias: Array, weight: Array, shift: Array, eps: float
) -> Array:
    """The definition of `gap_features`."""
    size, channels = 2 * window, len(bias)
    around = np.lib.stride_tricks.sliding_window_view(parts, size, axis=0).transpose(0, 2, 1)
    queries, keys, values = np.split(around, [channels, 2 * channels], axis=2)
    per_head = (len(around), size, heads, -1)
    queries, keys, values = (each.reshape(per_head) for each in (queries, keys, values))
    shares = softmax_twin(np.einsum("grhd,gjhd->ghrj", queries, keys))
    mixed = np.einsum("ghrj,gjhc->grc", shares, values) + bias
    normal = layer_norm_twin(mixed, weight, shift, eps)
    left, right = normal[:, :window].mean(axis=1), normal[:, window:].mean(axis=1)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosine = (left * right).sum(axis=1) / np.maximum(lengths, LEAST_LENGTH)
    out = np.zeros((len(around), feature_width(channels)), np.float32)
    found = (left, right, np.abs(left - right), left * right, cosine[:, None])
    np.concatenate(found, axis=1, out=out[:, : 4 * channels + 1])
    return out
