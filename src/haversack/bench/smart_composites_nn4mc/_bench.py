"""What the rows of this bench share: what they watch, the learned models."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from haversack.bench._harness import Bench

if TYPE_CHECKING:
    from haversack.embed.forward_model import Fit

FILES = (
    "embed/*.py",
    "embed/*.json",
    "embed/kernels/*.j2",
    "embed/templates/*.j2",
    "models/series/*.py",
    "models/graph/series.py",
    "models/graph/keras.py",
    "formats/keras_h5.py",
    "bench/_compiler.py",
    "bench/smart_composites_nn4mc/*.py",
)

bench = Bench("smart-composites-nn4mc", FILES, number=18)


@functools.lru_cache
def model_of(plant: str, seed: int) -> Fit:
    """The forward model of a plant from 60 s of random input, as `haversack embed control` learns it."""
    from haversack.embed.control import learned

    return learned(plant, seed=seed)
