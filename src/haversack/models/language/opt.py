"""OPT (Zhang et al., 2022): learned positions from row 2 on, layer norms, biases, a tied head.

OPT-350m alone has its norms after the sums, no final norm, and an embedding narrower than its blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from haversack.models._architecture import Architecture, Linear, Positions
from haversack.models._config import Config
from haversack.models.language._decoder import BlockTraits, Style, decoder
from haversack.models.language._shape import GATES, read_shape

NAMES = {"intermediate_size": "ffn_dim", "hidden_act": "activation_function"}
STYLE = Style(
    prefix="model.decoder",
    final_norm="final_layer_norm",
    output="out_proj",
    feed_forward="",
    gate=None,
    up="fc1",
    down="fc2",
    attention_norm="self_attn_layer_norm",
    feed_forward_norm="final_layer_norm",
    norm="layer",
)
OFFSET = 2
EPS = 1e-5


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of an OPT config. Raises UserError for a field that cannot be."""
    config = Config(values, names=NAMES)
    config.only("layer_norm_elementwise_affine", True)
    shape = replace(read_shape(config), eps=EPS)
    before = config.flag("do_layer_norm_before", True)
    bias = config.flag("enable_bias", True)
    traits = BlockTraits(rope=None, query_key_value_bias=bias, output_bias=bias, feed_forward_bias=bias)
    architecture = decoder(
        "opt",
        config,
        shape,
        [traits] * shape.layers,
        tied=config.flag("tie_word_embeddings", True),
        style=replace(STYLE, norms_after=not before),
        activation=config.choice("hidden_act", "relu", GATES),
    )
    positions = Positions("model.decoder.embed_positions.weight", shape.context + OFFSET, OFFSET)
    architecture = replace(architecture, positions=positions)
    if not before or config.flag("_remove_final_layer_norm", False):
        architecture = replace(architecture, final_norm=None)
    narrow = config.whole("word_embed_proj_dim", shape.width)
    if narrow == shape.width:
        return architecture
    return replace(
        architecture,
        head=replace(architecture.head, inputs=narrow),
        project_in=Linear.named("model.decoder.project_in", narrow, shape.width),
        project_out=Linear.named("model.decoder.project_out", shape.width, narrow),
    )
