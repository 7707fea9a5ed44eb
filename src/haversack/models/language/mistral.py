"""Mistral (Jiang et al., 2023): Llama whose every block sees a sliding window, unless the config sets it
to null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models._architecture import Architecture
from haversack.models._config import Config
from haversack.models._rope_config import read_rope
from haversack.models.language._decoder import BlockTraits, decoder
from haversack.models.language._shape import read_shape

DEFAULT_WINDOW = 4096  # of a config that does not mention it


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a Mistral config. Raises UserError for a field that cannot be."""
    config = Config(values)
    shape = read_shape(
        config, key_value_heads=None if config.values.get("num_key_value_heads", 0) is None else 8
    )
    named = "sliding_window" in values
    window = (
        config.whole("sliding_window") if config.has("sliding_window") else None if named else DEFAULT_WINDOW
    )
    traits = BlockTraits(rope=read_rope(config, shape.head_width, shape.context), window=window)
    tied = config.flag("tie_word_embeddings", False)
    return decoder("mistral", config, shape, [traits] * shape.layers, tied=tied)
