"""BERT (Devlin et al., 2018): learned positions from 0 on, two token types, a pooler over the first token.

Also the sentence encoders made from it (MiniLM and the like). A sequence head reads the pooled output; the
masked-language head is a dense layer, a norm and the words' embedding again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models._architecture import Linear
from haversack.models.language._encoder import EncoderArchitecture, Family, Head, HeadRequest, read_encoder

SYSTEM = 21
FAMILY = Family("bert", "Bert", "bert", padding=0, skips_padding=False)


def heads(request: HeadRequest) -> tuple[Linear | None, Head | None, dict[str, str]]:
    """Pooler, head and aliases of what `request` asks for."""
    if request.kind == "masked-language":
        at = "cls.predictions"
        head, aliases = request.words(
            f"{at}.transform.dense", f"{at}.decoder.weight", f"{at}.bias", f"{at}.transform.LayerNorm"
        )
        return None, head, aliases
    if request.kind == "sequence":
        output = Linear.named("classifier", request.width, request.classes, True)
        head = Head("sequence", output, request.pooler, "tanh", problem=request.problem)
        return request.pooler, head, {}
    if request.kind == "token":
        return None, request.tokens(), {}
    return request.pooler, None, {}


def read(values: Mapping[str, Any]) -> EncoderArchitecture:
    """The architecture of a BERT config. Raises UserError for a field that cannot be."""
    return read_encoder(FAMILY, values, heads)
