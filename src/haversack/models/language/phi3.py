"""Phi-3, Phi-3.5 and Phi-4-mini (Abdin et al., 2024): Llama whose checkpoints keep query, key and value in
one tensor, gate and up in another; a window in some, LongRoPE in those for long texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from haversack.models._architecture import Architecture, FeedForward, Part, parts_of
from haversack.models._config import Config
from haversack.models._rope_config import read_rope, rope_table
from haversack.models.language._decoder import BlockTraits, decoder
from haversack.models.language._shape import read_shape

ORIGINAL_CONTEXT = 4096  # of a config that does not mention it
EARLIER = {"su": "longrope", "yarn": "longrope"}
"""What LongRoPE was called in the first configs."""


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a Phi-3 config. Raises UserError for a field that cannot be."""
    config = Config(_renamed({"original_max_position_embeddings": ORIGINAL_CONTEXT, **values}))
    for name in ("short_mscale", "long_mscale"):
        rope_table(config).only(name, None)
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        config.only(name, False)
    shape = read_shape(config, eps=("rms_norm_eps", 1e-5))
    rope = read_rope(config, shape.head_width, shape.context, partial=1.0, scalings=("default", "longrope"))
    window = config.whole("sliding_window") if config.has("sliding_window") else None
    tied = config.flag("tie_word_embeddings", False)
    architecture = decoder("phi3", config, shape, [BlockTraits(rope, window)] * shape.layers, tied=tied)
    return replace(architecture, parts=_parts(architecture))


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    for name in ("rope_scaling", "rope_parameters"):
        table = values.get(name)
        for spelled in ("type", "rope_type"):
            if isinstance(table, dict) and isinstance(table.get(spelled), str):
                table = {**table, spelled: EARLIER.get(table[spelled], table[spelled])}
        if table is not None:
            values[name] = table
    return values


def _parts(architecture: Architecture) -> tuple[Part, ...]:
    found: tuple[Part, ...] = ()
    for block in architecture.blocks:
        at, attention = f"model.layers.{block.index}", block.attention
        assert attention is not None
        found += parts_of(f"{at}.self_attn.qkv_proj", (attention.query, attention.key, attention.value))
        for branch in block.branches:
            layer = branch.layer
            if isinstance(layer, FeedForward) and layer.gate is not None:
                found += parts_of(f"{at}.mlp.gate_up_proj", (layer.gate, layer.up))
    return found
