"""Vectors of texts from a decoder: its hidden states after the last norm, pooled.

vectors = embed(engine, ["one text", "another"])          # f32 [2, width]

`mean` averages the states of a text's tokens; `last` takes that of the last one, which alone has seen the
whole text. A decoder that was not trained for it gives vectors of modest use; an encoder (BERT and the like)
is made for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError, not_allowed
from haversack.models._tokenizer import Tokenizer
from haversack.run._engine import Engine
from haversack.run._generate import check_length, prompt_tokens

F32 = npt.NDArray[np.float32]
POOLINGS = ("mean", "last")


def embed(
    engine: Engine,
    texts: Sequence[str],
    *,
    pooling: str = "mean",
    normalized: bool = True,
    tokenizer: Tokenizer | None = None,
) -> F32:
    """One vector a text, f32 [n, width]; with `normalized`, of length 1.

    Raises UserError for no texts, and for one that is longer than the context, with both lengths.
    """
    if pooling not in POOLINGS:
        raise not_allowed("pooling", pooling, POOLINGS)
    if isinstance(texts, str) or not texts:
        raise UserError("give a list of at least one text.", field="input")
    tokenizer = tokenizer or engine.model.tokenizer()
    found = np.empty((len(texts), engine.architecture.width), np.float32)
    for row, text in enumerate(texts):
        tokens = prompt_tokens(engine, tokenizer, text)
        check_length(len(tokens), engine.context_length)
        cache = engine.cache(len(tokens))
        cache.sparse_from = len(tokens)
        _, hidden = engine.step(tokens, cache=cache, want="hidden")
        assert hidden is not None
        states = hidden.astype(np.float64)
        vector = states.mean(axis=0) if pooling == "mean" else states[-1]
        found[row] = vector / max(float(np.linalg.norm(vector)), 1e-12) if normalized else vector
    return found
