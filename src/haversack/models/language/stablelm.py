"""StableLM 3B and StableLM 2 (Bellagente et al., 2024): Llama with layer norms, and a quarter of every head
turned; the 12B has its layers side by side and a norm for each head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models._architecture import Architecture
from haversack.models._config import Config
from haversack.models._rope_config import read_rope
from haversack.models.language._decoder import BlockTraits, Style, decoder
from haversack.models.language._shape import read_shape

STYLE = Style(query_norm="q_layernorm", key_norm="k_layernorm", norm="layer")
KEY_VALUE_HEADS = 32  # of a config that does not mention them
TURNED = 0.25
MOST_NORMS = 1 << 16  # each head of each block has one


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a StableLM config. Raises UserError for a field that cannot be."""
    config = Config(values)
    shape = read_shape(config, key_value_heads=KEY_VALUE_HEADS, eps=("layer_norm_eps", 1e-5))
    norms = config.flag("qk_layernorm", False)
    if norms and shape.heads * shape.layers > MOST_NORMS:
        raise config.wrong(
            "num_attention_heads",
            f"asks for more than {MOST_NORMS} norms of heads in {shape.layers} blocks",
            max(MOST_NORMS // shape.layers, 1),
        )
    traits = BlockTraits(
        rope=read_rope(config, shape.head_width, shape.context, partial=TURNED),
        query_key_value_bias=config.flag("use_qkv_bias", False),
        head_norm="each" if norms else False,
        parallel=config.flag("use_parallel_residual", False),
    )
    tied = config.flag("tie_word_embeddings", False)
    return decoder("stablelm", config, shape, [traits] * shape.layers, tied=tied, style=STYLE)
