"""SmallThinker (arXiv 2507.20984, 2025): a decoder whose routers read the block's input before attention, so
that experts can be brought while attention computes, and whose experts are ReGLU, mostly zeros inside.

What is here: attention with positions where `rope_layout` says 1 and a window where `sliding_window_layout`
does (the 21B model: three blocks with both, one with neither), no biases, no norms of heads; in every block
`moe_num_primary_experts` of which a token takes `moe_num_active_primary_experts`. The router multiplies the
residual itself, not its norm; the share of a chosen expert is the sigmoid of its number, divided by the sum
over the chosen, or, with `moe_primary_router_apply_softmax`, a softmax over the chosen.
Limits: the predictor of the released engine that skips rows of the output matrix is no part of the model.
With `moe_enable_early_router` false the router reads what the experts read [inferred]; no released model has
that. Configs that ask for more that none has (secondary experts, dense blocks) are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models._architecture import Architecture
from haversack.models._config import Config
from haversack.models._rope_config import read_rope
from haversack.models.language._decoder import BlockTraits, decoder
from haversack.models.language._mixture import MixtureTraits, read_experts, with_mixtures
from haversack.models.language._shape import Shape, read_shape

SYSTEM = 49
DEFAULT_THETA = 1_000_000.0
EXPERTS, TOP = 32, 4  # of a config that does not mention them
WIDTH, HEAD_WIDTH = 768, 128
KEY_VALUE_HEADS = 2
WINDOW, CONTEXT = 4096, 131072
NAMES = {"intermediate_size": "moe_ffn_hidden_size"}
ONLY = {
    "moe_enable_secondary_experts": False,
    "moe_shared_primary_experts": 0,
    "use_qk_norm": False,
    "norm_topk_prob": True,
}
"""Fields of configs with a value beside which no released model has another."""


def layout(config: Config, name: str, shape: Shape, default: bool) -> list[bool]:
    """A zero or one for each block; a list of another length is refused."""
    found = config.flags(name, shape.layers)
    if found is None:
        return [default] * shape.layers
    if len(config.values[name]) != shape.layers:
        raise config.wrong(name, f"is not a list of {shape.layers} zeros and ones, one for each block")
    return found


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a SmallThinker config. Raises UserError for a field that cannot be."""
    config = Config({"moe_ffn_hidden_size": WIDTH, "max_position_embeddings": CONTEXT, **values}, names=NAMES)
    for name, value in ONLY.items():
        config.only(name, value)
    shape = read_shape(config, key_value_heads=KEY_VALUE_HEADS, head_width=HEAD_WIDTH)
    if not all(layout(config, "moe_layer_layout", shape, True)):
        raise config.wrong("moe_layer_layout", "has dense blocks, which this family does not do")
    rope = read_rope(config, shape.head_width, shape.context, DEFAULT_THETA)
    turned = layout(config, "rope_layout", shape, True)
    slides = layout(config, "sliding_window_layout", shape, False)
    window = config.whole("sliding_window_size", WINDOW) if any(slides) else None
    blocks = [
        BlockTraits(rope if turned[index] else None, window if slides[index] else None)
        for index in range(shape.layers)
    ]
    tied = config.flag("tie_word_embeddings", True)
    architecture = decoder("smallthinker", config, shape, blocks, tied=tied, activation="relu")
    experts, top = read_experts(
        config, shape, "moe_num_primary_experts", "moe_num_active_primary_experts", (EXPERTS, TOP)
    )
    softmax = config.flag("moe_primary_router_apply_softmax", False)
    traits = MixtureTraits(
        experts,
        top,
        shape.feed_forward,
        module="block_sparse_moe",
        router="primary_router",
        gate="gate",
        up="up",
        down="down",
        scoring="softmax" if softmax else "sigmoid",
        scored="chosen",
        normalized=not softmax,
        tap="residual" if config.flag("moe_enable_early_router", True) else "normed",
    )
    return with_mixtures(architecture, traits, range(shape.layers))
