"""Qwen2 and Qwen2.5 (Yang et al., 2024): Llama with biases on query, key and value; late blocks may see a
window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models._architecture import Architecture
from haversack.models._config import Config
from haversack.models._rope_config import read_rope
from haversack.models.language._decoder import BlockTraits, decoder
from haversack.models.language._shape import Shape, read_shape, windows


def late_windows(config: Config, shape: Shape) -> list[int | None]:
    """Windows of Qwen: from block `max_window_layers` on when `use_sliding_window`, unless `layer_types`
    says it.
    """
    if not config.flag("use_sliding_window", False) or (
        "sliding_window" in config.values and not config.has("sliding_window")
    ):
        return [None] * shape.layers
    first = config.whole("max_window_layers", 28, least=0)
    values = {"sliding_window": 4096, **config.values}
    return windows(Config(values), shape.layers, [index >= first for index in range(shape.layers)])


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a Qwen2 config. Raises UserError for a field that cannot be."""
    config = Config(values)
    shape = read_shape(
        config, key_value_heads=None if config.values.get("num_key_value_heads", 0) is None else 32
    )
    rope = read_rope(config, shape.head_width, shape.context)
    traits = [BlockTraits(rope, window, query_key_value_bias=True) for window in late_windows(config, shape)]
    return decoder("qwen2", config, shape, traits, tied=config.flag("tie_word_embeddings", False))
