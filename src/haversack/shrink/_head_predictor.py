"""A predictor of output rows learned on calibration text: what the text's hidden states are, and its
training."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import MissingExtraError
from haversack.models._experts import identity
from haversack.run._head_predictor import HeadPredictor
from haversack.shrink._expert_loss import Passes
from haversack.shrink._rounding import F32
from haversack.shrink._source import read_tensor

I32 = NDArray[np.int32]


def final_states(source: Any, walk: Any, texts: I32) -> F32:
    """What meets the output matrix, f32 [tokens, width], for `texts` i32 [pieces, length]; the model is in
    memory in f32 meanwhile."""
    passes = Passes(source, walk, texts)
    states = passes.embedded()
    for block in range(walk.blocks):
        states = passes.through(block, states, passes.blocks[block])
    return np.concatenate([passes.forward.finish(hidden, passes.top) for hidden in states])


def learned(source: Any, walk: Any, texts: I32, rank: int) -> HeadPredictor:
    """A predictor of `rank` for the model of `walk`. Raises MissingExtraError without PyTorch."""
    try:
        from haversack.shrink._head_predictor_torch import trained
    except ImportError as error:
        raise MissingExtraError("training a predictor of output rows", "torch", "workshop") from error
    states = final_states(source, walk, texts)
    output = read_tensor(source, walk.output)
    return trained(identity(source, walk.architecture), states, output, rank)
