"""ReGLU: a token reads only the neurons whose gate is above zero, and computes what reading all would.

Paper: SmallThinker, "A Family of Efficient Large Language Models Natively Trained for Local Deployment"
(arXiv 2507.20984, 2025).
What is here: a feed-forward layer down(relu(gate x) * (up x)) needs of `up` only the rows, and of `down` only
the columns, of the neurons with relu(gate x) > 0; models trained with it leave more than half of them out.
`up` is stored row after row (run/forms/neurons.py) and `down` by columns (run/forms/row_sparse.py, with
limits of 0), so that what is left out is never read. The gate is computed in full.
What we changed: the layout of `down` at 4 bits has a scale for a group of outputs, not of inputs.
Cost: nothing in quality; the neurons that calibration text leaves are noted in the pack, so that a run can
say how its text compares. Many tokens at once share few zeros: it is decoding that gains.
Limits: gated layers with ReLU alone; other activations give no zeros (see cats and r-sparse for those).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haversack.core.method import Method
from haversack.models._architecture import Block, FeedForward, Mixture

F32 = NDArray[np.float32]


def regated(gate: F32, up: F32) -> F32:
    """relu(gate) * up, f32 [tokens, neurons]."""
    return np.maximum(gate, np.float32(0)) * up


def zero_share(inner: F32) -> float:
    """The share of zeros in what `regated` gives: of neurons that are not read."""
    return float((inner == 0).mean()) if inner.size else 0.0


def relu_layers(blocks: Sequence[Block]) -> list[FeedForward]:
    """The gated feed-forward layers with ReLU of `blocks`, experts and shared ones among them."""
    found: list[FeedForward] = []
    for block in blocks:
        for branch in block.branches:
            layer = branch.layer
            if isinstance(layer, FeedForward):
                found.append(layer)
            elif isinstance(layer, Mixture):
                found += [*layer.experts, *(() if layer.shared is None else (layer.shared,))]
    return [layer for layer in found if layer.gate is not None and layer.activation == "relu"]


def weights_skipped(
    shapes: Mapping[str, tuple[int, ...]], layers: Sequence[FeedForward], share: float
) -> float:
    """The share of the weights `shapes` that a token does not read when `share` of the neurons are zeros."""
    whole = sum(int(np.prod(shape)) for shape in shapes.values())
    sparse = sum(int(np.prod(shapes[one.weight])) for layer in layers for one in (layer.up, layer.down))
    return share * sparse / whole if whole else 0.0


@dataclass(frozen=True)
class Reglu(Method):
    name = "reglu"
    stage = "shrink"
    slot = "structure"
    paper = "SmallThinker (arXiv 2507.20984, 2025)"
    summary = "Layers gated by ReLU read only the neurons that their gate leaves; the result is the same."
    system = 49
    provides = frozenset({"weight-type:row-sparse", "weight-layout:columns-1"})
