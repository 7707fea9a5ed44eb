"""OLMoE (Muennighoff et al., 2024): 64 small experts in each block, of which a token takes eight, and a norm
over all query heads together and all key heads together.

The shares come from a softmax over all numbers of the router, as they are unless `norm_topk_prob`.
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

EXPERTS, TOP = 64, 8  # of a config that does not mention them


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of an OLMoE config. Raises UserError for a field that cannot be."""
    config = Config(values)
    shape = read_shape(config, eps=("rms_norm_eps", 1e-5))
    bias = config.flag("attention_bias", False)
    rope = read_rope(config, shape.head_width, shape.context)
    block = BlockTraits(rope, query_key_value_bias=bias, output_bias=bias, head_norm="whole")
    tied = config.flag("tie_word_embeddings", False)
    architecture = decoder("olmoe", config, shape, [block] * shape.layers, tied=tied)
    experts, top = read_experts(config, shape, "num_experts", "num_experts_per_tok", (EXPERTS, TOP))
    normalized = config.flag("norm_topk_prob", False)
    traits = MixtureTraits(experts, top, shape.feed_forward, normalized=normalized)
    return with_mixtures(architecture, traits, range(shape.layers))
