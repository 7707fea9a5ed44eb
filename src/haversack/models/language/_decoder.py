"""The decoder that most families share: sequential blocks of attention and gated feed-forward, root-mean-
square norms.

A family's file reads what is its own (biases, windows, head norms, positions) and hands it over as
`BlockTraits`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from haversack.core.errors import UserError
from haversack.models._architecture import Architecture, Attention, Block, Branch, FeedForward, Linear, Norm
from haversack.models._config import Config
from haversack.models._rope import Rope

GATES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_new": "gelu-tanh",
    "relu": "relu",
}
LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Shape:
    """Sizes every decoder has."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    feed_forward: int
    context: int
    eps: float


@dataclass(frozen=True)
class BlockTraits:
    """What differs between blocks or families: biases, window, positions, norms of each head."""

    rope: Rope | None
    window: int | None = None
    query_key_value_bias: bool = False
    output_bias: bool = False
    feed_forward_bias: bool = False
    head_norm: bool = False


def read_shape(config: Config, *, key_value_heads: int | None = None, head_width: int | None = None) -> Shape:
    """The sizes of a config, checked against one another.

    `key_value_heads` and `head_width` are the family's defaults when the config names none (else: as many as
    heads, and width / heads).
    """
    if config.has("quantization_config"):
        raise UserError(
            "config.json: quantization_config says that the weights are quantized in a format that is "
            "not read; "
            "give the unquantized checkpoint and let `haversack pack` quantize it.",
            field="quantization_config",
        )
    width = config.whole("hidden_size")
    heads = config.whole("num_attention_heads", most=65536)
    if config.has("head_dim"):
        head_width = config.whole("head_dim", most=65536)
    elif head_width is None:
        if width % heads:
            raise config.wrong(
                "num_attention_heads", f"does not divide hidden_size={width}", _divisor(width, heads)
            )
        head_width = width // heads
    key_value_heads = config.whole("num_key_value_heads", key_value_heads or heads, most=65536)
    if heads % key_value_heads:
        raise UserError(
            f"{config.what}: num_key_value_heads={key_value_heads} does not divide "
            f"num_attention_heads={heads}.",
            field="num_key_value_heads",
            given=key_value_heads,
            nearest=_divisor(heads, key_value_heads),
        )
    return Shape(
        vocabulary=config.whole("vocab_size"),
        width=width,
        layers=config.whole("num_hidden_layers", most=4096),
        heads=heads,
        key_value_heads=key_value_heads,
        head_width=head_width,
        feed_forward=config.whole("intermediate_size"),
        context=config.whole("max_position_embeddings"),
        eps=config.number("rms_norm_eps", 1e-6, above=False),
    )


def _divisor(total: int, given: int) -> int:
    """The divisor of `total` nearest to `given`."""
    return min((n for n in range(1, total + 1) if total % n == 0), key=lambda n: abs(n - given))


def windows(config: Config, layers: int, default: list[bool]) -> list[int | None]:
    """Window of each block from `layer_types`, or from `default` (True: sliding) when the config has none."""
    types = config.strings("layer_types", layers, LAYER_TYPES)
    sliding = [kind == "sliding_attention" for kind in types] if types else default
    if not any(sliding):
        return [None] * layers
    window = config.whole("sliding_window")
    return [window if slides else None for slides in sliding]


def decoder(
    family: str, config: Config, shape: Shape, traits: list[BlockTraits], *, tied: bool
) -> Architecture:
    """The architecture of `shape` whose block i has `traits[i]`, with the hub's tensor names."""
    activation = config.choice("hidden_act", "silu", GATES)
    blocks = tuple(_block(shape, index, trait, activation) for index, trait in enumerate(traits))
    embedding = "model.embed_tokens.weight"
    start = config.tokens("bos_token_id", shape.vocabulary)
    return Architecture(
        family=family,
        vocabulary=shape.vocabulary,
        width=shape.width,
        context=shape.context,
        embedding=embedding,
        blocks=blocks,
        final_norm=Norm("model.norm.weight", shape.width, shape.eps),
        head=Linear(embedding if tied else "lm_head.weight", shape.width, shape.vocabulary),
        start_of_text=start[0] if start else None,
        end_of_text=config.tokens("eos_token_id", shape.vocabulary),
    )


def _block(shape: Shape, index: int, traits: BlockTraits, activation: str) -> Block:
    prefix = f"model.layers.{index}"
    attend, feed = f"{prefix}.self_attn", f"{prefix}.mlp"
    queries, keys = shape.heads * shape.head_width, shape.key_value_heads * shape.head_width
    bias = traits.query_key_value_bias

    def head_norm(name: str) -> Norm | None:
        return Norm(f"{attend}.{name}.weight", shape.head_width, shape.eps) if traits.head_norm else None

    attention = Attention(
        heads=shape.heads,
        key_value_heads=shape.key_value_heads,
        head_width=shape.head_width,
        scale=shape.head_width**-0.5,
        query=Linear.named(f"{attend}.q_proj", shape.width, queries, bias),
        key=Linear.named(f"{attend}.k_proj", shape.width, keys, bias),
        value=Linear.named(f"{attend}.v_proj", shape.width, keys, bias),
        output=Linear.named(f"{attend}.o_proj", queries, shape.width, traits.output_bias),
        rope=traits.rope,
        window=traits.window,
        query_norm=head_norm("q_norm"),
        key_norm=head_norm("k_norm"),
    )
    wide = traits.feed_forward_bias
    feed_forward = FeedForward(
        width=shape.feed_forward,
        activation=activation,
        gate=Linear.named(f"{feed}.gate_proj", shape.width, shape.feed_forward, wide),
        up=Linear.named(f"{feed}.up_proj", shape.width, shape.feed_forward, wide),
        down=Linear.named(f"{feed}.down_proj", shape.feed_forward, shape.width, wide),
    )
    return Block(
        index,
        (
            Branch(attention, Norm(f"{prefix}.input_layernorm.weight", shape.width, shape.eps)),
            Branch(feed_forward, Norm(f"{prefix}.post_attention_layernorm.weight", shape.width, shape.eps)),
        ),
    )


def config_of(values: Mapping[str, Any]) -> Config:
    """The bounded reader of a hub config."""
    return Config(values)
