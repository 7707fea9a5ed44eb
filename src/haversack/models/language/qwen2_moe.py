"""Qwen1.5-MoE and Qwen2-MoE (Yang et al., 2024): Qwen2 with 60 small experts in a block, of which a token
takes four, beside a shared one that takes every token, times the sigmoid of a number of its own.

Every `decoder_sparse_step`th block has a mixture, but those of `mlp_only_layers`; the others are dense.
Windows, which no published checkpoint has, are in every second block below `max_window_layers`, as
`transformers` has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models._architecture import Architecture
from haversack.models._config import Config
from haversack.models._rope_config import read_rope
from haversack.models.language._decoder import BlockTraits, decoder
from haversack.models.language._mixture import MixtureTraits, read_experts, sparse_blocks, with_mixtures
from haversack.models.language._shape import Shape, read_shape, windows

EXPERTS, TOP = 60, 4  # of a config that does not mention them
WIDTH, SHARED_WIDTH = 1408, 5632
KEY_VALUE_HEADS = 16
WINDOW, WINDOW_BLOCKS = 4096, 28


def early_windows(config: Config, shape: Shape) -> list[int | None]:
    """Windows of the blocks: with `use_sliding_window`, of every second one from the first on, below
    `max_window_layers`, unless `layer_types` says it.
    """
    if not config.flag("use_sliding_window", False):
        return [None] * shape.layers
    below = config.whole("max_window_layers", WINDOW_BLOCKS, least=0)
    values = {"sliding_window": WINDOW, **config.values}
    slides = [index % 2 == 0 and index < below for index in range(shape.layers)]
    return windows(Config(values), shape.layers, slides)


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a Qwen2-MoE config. Raises UserError for a field that cannot be."""
    config = Config(values)
    heads = None if config.values.get("num_key_value_heads", 0) is None else KEY_VALUE_HEADS
    shape = read_shape(config, key_value_heads=heads)
    rope = read_rope(config, shape.head_width, shape.context)
    bias = config.flag("qkv_bias", True)
    blocks = [BlockTraits(rope, window, query_key_value_bias=bias) for window in early_windows(config, shape)]
    tied = config.flag("tie_word_embeddings", False)
    architecture = decoder("qwen2_moe", config, shape, blocks, tied=tied)
    experts, top = read_experts(config, shape, "num_experts", "num_experts_per_tok", (EXPERTS, TOP))
    traits = MixtureTraits(
        experts,
        top,
        config.whole("moe_intermediate_size", WIDTH),
        normalized=config.flag("norm_topk_prob", False),
        shared=config.whole("shared_expert_intermediate_size", SHARED_WIDTH),
    )
    return with_mixtures(architecture, traits, sparse_blocks(config, shape))
