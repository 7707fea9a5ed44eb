"""Quality of an encoder as packed, against the encoder as it came: its vectors, or the words it fills in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from haversack.run._encode import Tokens
from haversack.run._encoder import Encoder
from haversack.run._pooling import normalized

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
MASKED = 0.15  # share of tokens that are masked, as in BERT's training


def mean_cosine(first: F32, second: F32) -> float:
    """Mean cosine of the rows of two arrays [n, width]."""
    return float((normalized(first) * normalized(second)).sum(axis=1, dtype=np.float64).mean())


def masked(texts: Sequence[Tokens], mask: int, first: int, seed: int) -> tuple[list[Tokens], list[I32]]:
    """Each text with MASKED of its inner tokens replaced by `mask`, and where; `first` tokens at either end
    stay. The same seed masks the same."""
    rng = np.random.default_rng(seed)
    found, places = [], []
    for text in texts:
        inner = np.arange(first, len(text) - first)
        if not len(inner):
            continue
        count = max(1, round(MASKED * len(inner)))
        at = np.sort(rng.choice(inner, size=min(count, len(inner)), replace=False)).astype(np.int32)
        ids = text.ids.copy()
        ids[at] = mask
        found.append(Tokens(ids, text.types, text.positions))
        places.append(at)
    return found, places


def masked_bits(encoder: Encoder, texts: Sequence[Tokens], mask: int, seed: int) -> float:
    """Bits that `encoder` needs for each masked token of `texts`."""
    hidden_texts, places = masked(texts, mask, 1, seed)
    whole = {id(one): text for one, text in zip(hidden_texts, [t for t in texts if len(t) > 2], strict=True)}
    total, count = 0.0, 0
    for text, at in zip(hidden_texts, places, strict=True):
        rows = np.ascontiguousarray(encoder.hidden([text])[at])
        logits = encoder.forward.head(rows, [len(rows)], encoder.weights).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(at)), whole[id(text)].ids[at]]
        total += float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum()) / math.log(2)
        count += len(at)
    return total / max(count, 1)


def loss(encoder: Encoder, reference: F32, texts: Sequence[Tokens], reference_bits: float | None) -> float:
    """What `encoder` lost: 1 - mean cosine of its vectors to `reference` [texts, width]; with a
    masked-language head the increase of the bits of a masked token over `reference_bits`, as a share."""
    if reference_bits is not None:
        from haversack.run._answers import mask_token

        return masked_bits(encoder, texts, mask_token(encoder)[1], 0) / reference_bits - 1.0
    return 1.0 - mean_cosine(encoder.embed_tokens(texts), reference)
