"""RoBERTa (Liu et al., 2019): BERT with positions that begin behind the padding token and skip it.

A token's position row is `pad_token_id` + the number of tokens up to it that are no padding; padding reads
row `pad_token_id`. A sequence head has a dense layer of its own; the masked-language head's activation is
always the exact GELU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from haversack.models._architecture import Linear
from haversack.models.language._encoder import EncoderArchitecture, Family, Head, HeadRequest, read_encoder

SYSTEM = 21
FAMILY = Family("roberta", "Roberta", "roberta", padding=1, skips_padding=True)


def heads(request: HeadRequest) -> tuple[Linear | None, Head | None, dict[str, str]]:
    """Pooler, head and aliases of what `request` asks for."""
    if request.kind == "masked-language":
        exact = replace(request, activation="gelu")
        head, aliases = exact.words(
            "lm_head.dense", "lm_head.decoder.weight", "lm_head.bias", "lm_head.layer_norm"
        )
        return None, head, aliases
    if request.kind == "sequence":
        dense = Linear.named("classifier.dense", request.width, request.width, True)
        output = Linear.named("classifier.out_proj", request.width, request.classes, True)
        return None, Head("sequence", output, dense, "tanh", problem=request.problem), {}
    if request.kind == "token":
        return None, request.tokens(), {}
    return request.pooler, None, {}


def read(values: Mapping[str, Any]) -> EncoderArchitecture:
    """The architecture of a RoBERTa config. Raises UserError for a field that cannot be."""
    return read_encoder(FAMILY, values, heads)
