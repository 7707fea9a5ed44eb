"""Qwen3-MoE (Yang et al., 2025): Qwen3 with 128 small experts in a block, of which a token takes eight.

The shares come from a softmax over all numbers of the router, divided by their sum with `norm_topk_prob`,
which published checkpoints set. Every `decoder_sparse_step`th block has a mixture, but those of
`mlp_only_layers`. A window, with `use_sliding_window`, is in every block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models._architecture import Architecture
from haversack.models._config import Config
from haversack.models._rope_config import read_rope
from haversack.models.language._decoder import BlockTraits, decoder
from haversack.models.language._mixture import MixtureTraits, read_experts, sparse_blocks, with_mixtures
from haversack.models.language._shape import read_shape

EXPERTS, TOP = 128, 8  # of a config that does not mention them
WIDTH = 768
KEY_VALUE_HEADS = 4
WINDOW = 4096
NAMES = {"num_experts": "num_local_experts"}
"""What newer configs call a field."""


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a Qwen3-MoE config. Raises UserError for a field that cannot be."""
    config = Config({"sliding_window": WINDOW, **values}, names=NAMES)
    heads = None if config.values.get("num_key_value_heads", 0) is None else KEY_VALUE_HEADS
    shape = read_shape(config, key_value_heads=heads)
    rope = read_rope(config, shape.head_width, shape.context)
    bias = config.flag("attention_bias", False)
    slides = config.flag("use_sliding_window", False) and config.has("sliding_window")
    window = config.whole("sliding_window") if slides else None
    block = BlockTraits(rope, window, query_key_value_bias=bias, output_bias=bias, head_norm=True)
    tied = config.flag("tie_word_embeddings", False)
    architecture = decoder("qwen3_moe", config, shape, [block] * shape.layers, tied=tied)
    experts, top = read_experts(config, shape, "num_experts", "num_experts_per_tok", (EXPERTS, TOP))
    traits = MixtureTraits(
        experts,
        top,
        config.whole("moe_intermediate_size", WIDTH),
        normalized=config.flag("norm_topk_prob", False),
    )
    return with_mixtures(architecture, traits, sparse_blocks(config, shape))
