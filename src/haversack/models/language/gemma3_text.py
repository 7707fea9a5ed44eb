"""Gemma 3, the text model (Gemma Team, 2025): Gemma 2 without the bounds, with a norm on every query and key
head; one block in six sees everything, the others a window, with positions of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from haversack.models._architecture import Architecture
from haversack.models._config import Config
from haversack.models._rope import Rope
from haversack.models._rope_config import rope_of, rope_table
from haversack.models.language._decoder import BlockTraits, decoder
from haversack.models.language._shape import GATES, LAYER_TYPES, Shape, read_shape, windows
from haversack.models.language.gemma import HEAD_WIDTH, one_way, scaled
from haversack.models.language.gemma2 import KEY_VALUE_HEADS, STYLE, WINDOW, softcap

THETA, LOCAL_THETA = 1_000_000.0, 10_000.0


def ropes(config: Config, shape: Shape) -> tuple[Rope, Rope]:
    """Positions of blocks that see everything, and of those with a window.

    Older configs scale the former alone (`rope_theta`, `rope_scaling`) and name the latter's base
    `rope_local_base_freq`; newer ones have a table for each kind of block.
    """
    table = rope_table(config)
    wide, local = (table.table(kind) for kind in LAYER_TYPES)
    if config.table("rope_scaling") is not None or (wide is None and local is None):
        wide, local = table, None
    empty = Config({}, table.what)
    found = []
    for part, name, default in (
        (wide or empty, "rope_theta", THETA),
        (local or empty, "rope_local_base_freq", LOCAL_THETA),
    ):
        for holder in (part, config):
            holder.only("partial_rotary_factor", 1.0)
        theta = part.number("rope_theta", config.number(name, default))
        found.append(rope_of(config, part, shape.head_width, shape.context, theta))
    return found[0], found[1]


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a Gemma 3 text config. Raises UserError for a field that cannot be."""
    config = Config({"sliding_window": WINDOW, **values})
    one_way(config)
    config.only("attn_logit_softcapping", None)
    shape = read_shape(config, key_value_heads=KEY_VALUE_HEADS, head_width=HEAD_WIDTH)
    every = config.whole("sliding_window_pattern", 6)
    slides = [bool((index + 1) % every) for index in range(shape.layers)]
    wide, local = ropes(config, shape)
    bias = config.flag("attention_bias", False)
    scale = config.number("query_pre_attn_scalar", 256) ** -0.5
    traits = [
        BlockTraits(local if window else wide, window, bias, bias, head_norm=True, scale=scale)
        for window in windows(config, shape.layers, slides)
    ]
    architecture = decoder(
        "gemma3_text",
        config,
        shape,
        traits,
        tied=config.flag("tie_word_embeddings", True),
        style=STYLE,
        activation=config.choice("hidden_activation", "gelu_pytorch_tanh", GATES),
    )
    return replace(scaled(architecture), logit_softcap=softcap(config, "final_logit_softcapping", None))
