"""GPT-2 (Radford et al., 2019): learned positions, layer norms, biases everywhere, a tied head.

Checkpoints keep every matrix of a block as [inputs, outputs], with query, key and value in one; packs keep
them apart and turned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from haversack.models._architecture import Architecture, Attention, FeedForward, Part, Positions, parts_of
from haversack.models._config import Config
from haversack.models.language._decoder import BlockTraits, Style, decoder
from haversack.models.language._shape import GATES, read_shape

NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "hidden_act": "activation_function",
}
STYLE = Style(
    prefix="transformer",
    layers="h",
    embedding="wte",
    final_norm="ln_f",
    attention="attn",
    query="query",
    key="key",
    value="value",
    output="output",
    gate=None,
    up="up",
    down="down",
    attention_norm="ln_1",
    feed_forward_norm="ln_2",
    norm="layer",
)


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a GPT-2 config. Raises UserError for a field that cannot be."""
    config = Config(values, names=NAMES)
    config.only("add_cross_attention", False)
    config.only("pruned_heads", {})
    if not config.has("intermediate_size"):
        config = Config({**values, "n_inner": 4 * config.whole("hidden_size")}, names=NAMES)
    shape = read_shape(config, eps=("layer_norm_epsilon", 1e-5))
    scale = shape.head_width**-0.5 if config.flag("scale_attn_weights", True) else 1.0
    by_block = config.flag("scale_attn_by_inverse_layer_idx", False)
    traits = [
        BlockTraits(
            rope=None,
            query_key_value_bias=True,
            output_bias=True,
            feed_forward_bias=True,
            scale=scale / (index + 1) if by_block else scale,
        )
        for index in range(shape.layers)
    ]
    architecture = decoder(
        "gpt2",
        config,
        shape,
        traits,
        tied=config.flag("tie_word_embeddings", True),
        style=STYLE,
        activation=config.choice("hidden_act", "gelu_new", GATES),
    )
    positions = Positions("transformer.wpe.weight", shape.context)
    return replace(architecture, positions=positions, parts=_parts(architecture))


def _parts(architecture: Architecture) -> tuple[Part, ...]:
    found: tuple[Part, ...] = ()
    for block in architecture.blocks:
        at = f"transformer.h.{block.index}"
        for branch in block.branches:
            layer = branch.layer
            if isinstance(layer, Attention):
                found += parts_of(f"{at}.attn.c_attn", (layer.query, layer.key, layer.value), transposed=True)
                found += parts_of(f"{at}.attn.c_proj", (layer.output,), transposed=True)
            elif isinstance(layer, FeedForward):
                found += parts_of(f"{at}.mlp.c_fc", (layer.up,), transposed=True)
                found += parts_of(f"{at}.mlp.c_proj", (layer.down,), transposed=True)
    return found
