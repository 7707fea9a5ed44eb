"""Phi-1, Phi-1.5 and Phi-2 (Li et al., 2023): attention and feed-forward side by side behind one layer norm,
biases everywhere, a part of every head turned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models._architecture import Architecture
from haversack.models._config import Config
from haversack.models._rope_config import read_rope
from haversack.models.language._decoder import BlockTraits, Style, decoder
from haversack.models.language._shape import GATES, read_shape

STYLE = Style(
    final_norm="final_layernorm",
    output="dense",
    query_norm="q_layernorm",
    key_norm="k_layernorm",
    gate=None,
    up="fc1",
    down="fc2",
    norm="layer",
)
TURNED = 0.5  # of a config that does not mention it


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a Phi config. Raises UserError for a field that cannot be."""
    config = Config(values)
    shape = read_shape(config, eps=("layer_norm_eps", 1e-5))
    traits = BlockTraits(
        rope=read_rope(config, shape.head_width, shape.context, partial=TURNED),
        query_key_value_bias=True,
        output_bias=True,
        feed_forward_bias=True,
        head_norm=config.flag("qk_layernorm", False),
        parallel=True,
    )
    return decoder(
        "phi",
        config,
        shape,
        [traits] * shape.layers,
        tied=config.flag("tie_word_embeddings", False),
        style=STYLE,
        head_bias=True,
        activation=config.choice("hidden_act", "gelu_new", GATES),
    )
