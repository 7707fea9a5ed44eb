"""Attention biased by distance: what a score gets by how far an entry lies from its query.

Distances fall into buckets: near ones have a bucket each, farther ones share buckets whose width grows with
the logarithm, and all from `reach` on share the last. A learned matrix [buckets, heads] says what each bucket
adds to the scores of each head. Raffel et al., "Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer" (T5, 2020), section 2.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DistanceBias:
    """The matrix `weight` [buckets, heads]; `both_ways`: a token sees those behind it as well, and half the
    buckets are for them.
    """

    weight: str
    buckets: int
    heads: int
    reach: int
    both_ways: bool


def bucket_of(distances: I64, buckets: int, reach: int, both_ways: bool) -> I64:
    """The bucket of each of `distances` i64 [n], an entry's position less that of its query.

    >>> import numpy as np
    >>> bucket_of(np.array([0, -1, -40, 3]), 32, 128, True).tolist()
    [0, 1, 12, 19]
    """
    import numpy as np

    side = np.zeros_like(distances)
    if both_ways:
        buckets //= 2
        side = (distances > 0) * buckets
        far = np.abs(distances)
    else:
        far = -np.minimum(distances, 0)
    exact = buckets // 2
    logs = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    steps = logs / np.float32(math.log(reach / exact)) * np.float32(buckets - exact)
    shared = np.minimum(exact + steps.astype(np.int64), buckets - 1)
    found: I64 = side + np.where(far < exact, far, shared)
    return found


def distance_table(rows: F32, bias: DistanceBias) -> F32:
    """f32 [heads, 2 * reach + 1]: what the distances -reach to reach add to scores, of the matrix `rows` f32
    [buckets, heads].
    """
    import numpy as np

    distances = np.arange(-bias.reach, bias.reach + 1)
    return np.ascontiguousarray(rows[bucket_of(distances, bias.buckets, bias.reach, bias.both_ways)].T)
