"""Qwen3 (Yang et al., 2025): Qwen2 without biases, with a norm on every query and key head and heads of
their own width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models._architecture import Architecture
from haversack.models._config import Config
from haversack.models._rope_config import read_rope
from haversack.models.language._decoder import BlockTraits, decoder
from haversack.models.language._shape import read_shape
from haversack.models.language.qwen2 import late_windows


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a Qwen3 config. Raises UserError for a field that cannot be."""
    config = Config(values)
    default = None if config.values.get("num_key_value_heads", 0) is None else 32
    shape = read_shape(config, key_value_heads=default, head_width=128)
    rope = read_rope(config, shape.head_width, shape.context)
    bias = config.flag("attention_bias", False)
    traits = [
        BlockTraits(rope, window, query_key_value_bias=bias, output_bias=bias, head_norm=True)
        for window in late_windows(config, shape)
    ]
    return decoder("qwen3", config, shape, traits, tied=config.flag("tie_word_embeddings", False))
