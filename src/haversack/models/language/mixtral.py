"""Mixtral (Jiang et al., 2024): Mistral with eight feed-forward layers in each block, of which a token takes
two.

The shares of the two come from a softmax over all numbers of the router, divided by their sum. In checkpoints
an expert's gate, down and up are w1, w2 and w3 of `block_sparse_moe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models._architecture import Architecture
from haversack.models._config import Config
from haversack.models._rope_config import read_rope
from haversack.models.language._decoder import BlockTraits, decoder
from haversack.models.language._mixture import MixtureTraits, read_experts, with_mixtures
from haversack.models.language._shape import read_shape

DEFAULT_THETA = 1_000_000.0
EXPERTS, TOP = 8, 2  # of a config that does not mention them
KEY_VALUE_HEADS = 8


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a Mixtral config. Raises UserError for a field that cannot be."""
    config = Config(values)
    heads = None if config.values.get("num_key_value_heads", 0) is None else KEY_VALUE_HEADS
    shape = read_shape(config, key_value_heads=heads, eps=("rms_norm_eps", 1e-5))
    window = config.whole("sliding_window") if config.has("sliding_window") else None
    rope = read_rope(config, shape.head_width, shape.context, DEFAULT_THETA)
    tied = config.flag("tie_word_embeddings", False)
    architecture = decoder("mixtral", config, shape, [BlockTraits(rope, window)] * shape.layers, tied=tied)
    experts, top = read_experts(config, shape, "num_local_experts", "num_experts_per_tok", (EXPERTS, TOP))
    traits = MixtureTraits(
        experts,
        top,
        shape.feed_forward,
        module="block_sparse_moe",
        gate="w1",
        up="w3",
        down="w2",
        normalized=True,
    )
    return with_mixtures(architecture, traits, range(shape.layers))
