"""Gemma (Gemma Team, 2024): Llama with a scaled embedding, norms whose weights are kept less one, a tanh GELU
gate and wide heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from haversack.models._architecture import Architecture
from haversack.models._config import Config
from haversack.models._rope_config import read_rope
from haversack.models.language._decoder import BlockTraits, Style, decoder
from haversack.models.language._shape import GATES, read_shape

STYLE = Style(norm_offset=1.0)
HEAD_WIDTH = 256  # of a config that does not mention it
KEY_VALUE_HEADS = 16


def one_way(config: Config) -> None:
    """Refuse attention in both directions, which makes an encoder of a Gemma."""
    config.only("use_bidirectional_attention", False)


def scaled(architecture: Architecture) -> Architecture:
    """With the embedding times the root of its width, as in all Gemmas."""
    return replace(architecture, embedding_scale=math.sqrt(architecture.width))


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a Gemma config. Raises UserError for a field that cannot be."""
    config = Config(values)
    one_way(config)
    shape = read_shape(config, key_value_heads=KEY_VALUE_HEADS, head_width=HEAD_WIDTH)
    # The first configs say gelu and mean its tanh form; some name the activation twice.
    gates = {**GATES, "gelu": "gelu-tanh"}
    activation = config.choice("hidden_act", "gelu_pytorch_tanh", gates)
    if config.choice("hidden_activation", "gelu_pytorch_tanh", gates) != activation and config.has(
        "hidden_activation"
    ):
        raise config.wrong("hidden_activation", f"contradicts hidden_act={config.values.get('hidden_act')}")
    bias = config.flag("attention_bias", False)
    traits = BlockTraits(
        rope=read_rope(config, shape.head_width, shape.context), query_key_value_bias=bias, output_bias=bias
    )
    tied = config.flag("tie_word_embeddings", True)
    return scaled(
        decoder(
            "gemma",
            config,
            shape,
            [traits] * shape.layers,
            tied=tied,
            style=STYLE,
            activation=activation,
        )
    )
