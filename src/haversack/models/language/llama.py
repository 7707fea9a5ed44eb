"""Llama (Touvron et al., 2023; Llama 3, 2024): rotary positions, grouped heads, gated feed-forward; optional
biases.

Also what calls itself llama: TinyLlama, SmolLM 1 and 2, Yi and the bundled `code` models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models._architecture import Architecture
from haversack.models._config import Config
from haversack.models._rope_config import read_rope
from haversack.models.language._decoder import BlockTraits, decoder
from haversack.models.language._shape import read_shape


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a Llama config. Raises UserError for a field that cannot be."""
    config = Config(values)
    shape = read_shape(config)
    bias = config.flag("attention_bias", False)
    traits = BlockTraits(
        rope=read_rope(config, shape.head_width, shape.context),
        query_key_value_bias=bias,
        output_bias=bias,
        feed_forward_bias=config.flag("mlp_bias", False),
    )
    tied = config.flag("tie_word_embeddings", False)
    return decoder("llama", config, shape, [traits] * shape.layers, tied=tied)
