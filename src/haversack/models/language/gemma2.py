"""Gemma 2 (Gemma Team, 2024): Gemma with norms on both sides of every layer, windows in every second block,
and products and logits that a tanh bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from haversack.models._architecture import Architecture
from haversack.models._config import Config
from haversack.models._rope_config import read_rope
from haversack.models.language._decoder import BlockTraits, Style, decoder
from haversack.models.language._shape import GATES, read_shape, windows
from haversack.models.language.gemma import HEAD_WIDTH, one_way, scaled

STYLE = Style(
    attention_post="post_attention_layernorm",
    feed_forward_norm="pre_feedforward_layernorm",
    feed_forward_post="post_feedforward_layernorm",
    norm_offset=1.0,
)
KEY_VALUE_HEADS = 4  # of a config that does not mention them
WINDOW = 4096


def softcap(config: Config, name: str, default: float | None) -> float | None:
    """The bound `name`: `default` when the config does not mention it, None when it is null."""
    if name not in config.values:
        return default
    return config.number(name) if config.has(name) else None


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a Gemma 2 config. Raises UserError for a field that cannot be."""
    config = Config({"sliding_window": WINDOW, **values})
    one_way(config)
    shape = read_shape(config, key_value_heads=KEY_VALUE_HEADS, head_width=HEAD_WIDTH)
    rope = read_rope(config, shape.head_width, shape.context)
    bias = config.flag("attention_bias", False)
    scale = config.number("query_pre_attn_scalar", 256) ** -0.5
    cap = softcap(config, "attn_logit_softcapping", 50.0)
    traits = [
        BlockTraits(rope, window, bias, bias, scale=scale, softcap=cap)
        for window in windows(config, shape.layers, [index % 2 == 0 for index in range(shape.layers)])
    ]
    architecture = decoder(
        "gemma2",
        config,
        shape,
        traits,
        tied=config.flag("tie_word_embeddings", True),
        style=STYLE,
        activation=config.choice("hidden_activation", "gelu_pytorch_tanh", GATES),
    )
    return replace(scaled(architecture), logit_softcap=softcap(config, "final_logit_softcapping", 30.0))
