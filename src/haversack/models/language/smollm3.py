"""SmolLM3 (Hugging Face, 2025): Llama in which every fourth block has no positions; these may see a
window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models._architecture import Architecture
from haversack.models._config import Config
from haversack.models._rope_config import read_rope
from haversack.models.language._decoder import BlockTraits, decoder
from haversack.models.language._shape import read_shape, windows

DEFAULT_THETA = 2_000_000.0


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a SmolLM3 config. Raises UserError for a field that cannot be."""
    config = Config(values)
    shape = read_shape(
        config, key_value_heads=None if config.values.get("num_key_value_heads", 0) is None else 4
    )
    turned = config.flags("no_rope_layers", shape.layers)  # 1 means that the block has positions
    if turned is None:
        every = config.whole("no_rope_layer_interval", 4)
        turned = [bool((index + 1) % every) for index in range(shape.layers)]
    rope = read_rope(config, shape.head_width, shape.context, DEFAULT_THETA)
    slides = config.flag("use_sliding_window", False) and config.has("sliding_window")
    seen: list[int | None] = [None] * shape.layers
    if slides:
        seen = windows(config, shape.layers, [not has_positions for has_positions in turned])
    bias = config.flag("attention_bias", False)
    wide = config.flag("mlp_bias", False)
    traits = [
        BlockTraits(rope if turned[index] else None, seen[index], bias, bias, wide)
        for index in range(shape.layers)
    ]
    return decoder("smollm3", config, shape, traits, tied=config.flag("tie_word_embeddings", True))
