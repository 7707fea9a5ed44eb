"""Whether tokens were drawn from a distribution."""

from __future__ import annotations

import numpy as np


def require_drawn_from(exact: np.ndarray, counts: np.ndarray) -> None:
    """Chi-square of `counts` [tokens] against the probabilities `exact`, rare tokens taken together; a sound
    sampler fails it about once in ten thousand."""
    total = counts.sum()
    likely = exact * total >= 5
    assert counts[exact == 0].sum() == 0
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(exact[likely], exact[~likely].sum()) * total
    kept = expected > 0
    distance = float(((observed - expected)[kept] ** 2 / expected[kept]).sum())
    degrees = int(kept.sum()) - 1
    assert distance < degrees + 4 * np.sqrt(2 * degrees) + 4
