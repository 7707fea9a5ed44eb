"""What compression looks at in a block that listens to another sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from haversack.models._architecture import Block, CrossAttention, Layer
from haversack.run._products import multiply
from haversack.shrink._rounding import F32
from haversack.shrink._transforms import Pair


def side_by_side(
    block: Block, pair: Pair, x: F32, weights: Mapping[str, Any], made: Callable[[Layer], F32]
) -> F32:
    """What the layers behind the norm of `pair` make of x f32 [n, width], side by side: f32 [n, columns].

    Of cross-attention it is the queries, since keys and values come from elsewhere; `made` is the output of
    any other layer.
    """
    found = []
    for branch in block.branches:
        if branch.norm is None or branch.norm.weight != pair.producer:
            continue
        if isinstance(branch.layer, CrossAttention):
            query = np.empty((len(x), branch.layer.query.outputs), np.float32)
            multiply(x, (branch.layer.query,), weights, (query,), "f32")
            found.append(query)
        else:
            found.append(made(branch.layer))
    return np.concatenate(found, axis=1)
