"""The decoder that all families share: blocks of attention and feed-forward, one after the other or side by
side.

A family's file reads what is its own. What its tensors are called and how its norms work is a `Style`; what
may differ from block to block (biases, windows, positions) are `BlockTraits`; the little that lies outside
the blocks it sets on the `Architecture` itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from haversack.models._architecture import (
    Architecture,
    Attention,
    Block,
    Branch,
    FeedForward,
    HeadNorm,
    Linear,
    Norm,
)
from haversack.models._config import Config
from haversack.models._rope import Rope
from haversack.models.language._shape import GATES, Shape


@dataclass(frozen=True)
class Style:
    """The names of a family's modules, and its kind of norm.

    Names of a block's modules stand behind `prefix`.`layers`.NUMBER; those of the layers behind `attention`
    and `feed_forward` as well (where these are not empty). `gate` None: the feed-forward layer has no gate.
    `attention_post` and `feed_forward_post` are norms on a layer's result. `norms_after`: the norms come
    after the sums, not before the layers. `norm` is rms or layer, see `Norm`.
    """

    prefix: str = "model"
    layers: str = "layers"
    embedding: str = "embed_tokens"
    final_norm: str = "norm"
    attention: str = "self_attn"
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str = "o_proj"
    query_norm: str = "q_norm"
    key_norm: str = "k_norm"
    feed_forward: str = "mlp"
    gate: str | None = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    attention_norm: str = "input_layernorm"
    feed_forward_norm: str = "post_attention_layernorm"
    attention_post: str | None = None
    feed_forward_post: str | None = None
    norms_after: bool = False
    norm: str = "rms"
    norm_offset: float = 0.0

    def normed(self, module: str, width: int, eps: float) -> Norm:
        """The norm `module`; layer norms have a bias."""
        bias = f"{module}.bias" if self.norm == "layer" else None
        return Norm(f"{module}.weight", width, eps, self.norm, self.norm_offset, bias)


@dataclass(frozen=True)
class BlockTraits:
    """What differs between blocks or families: biases, window, positions, norms of each head.

    `head_norm`: False, True (one norm for every head), "each" (one for each, without bias) or "whole" (one
    for all heads together). `scale` of the products of query and key: None for one over the root of the
    head's width. `parallel`: both layers read the block's input, behind one norm.
    """

    rope: Rope | None
    window: int | None = None
    query_key_value_bias: bool = False
    output_bias: bool = False
    feed_forward_bias: bool = False
    head_norm: bool | str = False
    scale: float | None = None
    softcap: float | None = None
    parallel: bool = False


def decoder(
    family: str,
    config: Config,
    shape: Shape,
    traits: Sequence[BlockTraits],
    *,
    tied: bool,
    style: Style = Style(),
    head_bias: bool = False,
    activation: str | None = None,
) -> Architecture:
    """The architecture of `shape` whose block i has `traits[i]`, with the tensor names of `style`.

    `activation` of the feed-forward layers: that of `hidden_act` when None.
    """
    activation = activation or config.choice("hidden_act", "silu", GATES)
    blocks = tuple(_block(shape, index, trait, style, activation) for index, trait in enumerate(traits))
    embedding = f"{style.prefix}.{style.embedding}.weight"
    start = config.tokens("bos_token_id", shape.vocabulary)
    return Architecture(
        family=family,
        vocabulary=shape.vocabulary,
        width=shape.width,
        context=shape.context,
        embedding=embedding,
        blocks=blocks,
        final_norm=style.normed(f"{style.prefix}.{style.final_norm}", shape.width, shape.eps),
        head=Linear(
            embedding if tied else "lm_head.weight",
            shape.width,
            shape.vocabulary,
            "lm_head.bias" if head_bias else None,
        ),
        start_of_text=start[0] if start else None,
        end_of_text=config.tokens("eos_token_id", shape.vocabulary),
    )


def _block(shape: Shape, index: int, traits: BlockTraits, style: Style, activation: str) -> Block:
    at = f"{style.prefix}.{style.layers}.{index}"

    def norm(module: str | None) -> Norm | None:
        return None if module is None else style.normed(f"{at}.{module}", shape.width, shape.eps)

    def branch(layer: Attention | FeedForward, module: str, post: str | None) -> Branch:
        if style.norms_after:
            return Branch(layer, after_norm=norm(module))
        return Branch(layer, norm(module), norm(post))

    attention = _attention(shape, f"{at}.{style.attention}", traits, style)
    feed_forward = _feed_forward(
        shape, ".".join(filter(None, (at, style.feed_forward))), traits, style, activation
    )
    second = style.attention_norm if traits.parallel else style.feed_forward_norm
    return Block(
        index,
        (
            branch(attention, style.attention_norm, style.attention_post),
            branch(feed_forward, second, style.feed_forward_post),
        ),
        traits.parallel,
    )


def _attention(shape: Shape, at: str, traits: BlockTraits, style: Style) -> Attention:
    queries, keys = shape.heads * shape.head_width, shape.key_value_heads * shape.head_width
    bias = traits.query_key_value_bias

    def head_norm(module: str, heads: int) -> HeadNorm | None:
        width, eps = shape.head_width, shape.eps
        if traits.head_norm == "each":
            return tuple(
                Norm(f"{at}.{module}.norms.{i}.weight", width, eps, style.norm) for i in range(heads)
            )
        if traits.head_norm == "whole":
            width *= heads
        return style.normed(f"{at}.{module}", width, eps) if traits.head_norm else None

    return Attention(
        heads=shape.heads,
        key_value_heads=shape.key_value_heads,
        head_width=shape.head_width,
        scale=shape.head_width**-0.5 if traits.scale is None else traits.scale,
        query=Linear.named(f"{at}.{style.query}", shape.width, queries, bias),
        key=Linear.named(f"{at}.{style.key}", shape.width, keys, bias),
        value=Linear.named(f"{at}.{style.value}", shape.width, keys, bias),
        output=Linear.named(f"{at}.{style.output}", queries, shape.width, traits.output_bias),
        rope=traits.rope,
        window=traits.window,
        softcap=traits.softcap,
        query_norm=head_norm(style.query_norm, shape.heads),
        key_norm=head_norm(style.key_norm, shape.key_value_heads),
    )


def _feed_forward(shape: Shape, at: str, traits: BlockTraits, style: Style, activation: str) -> FeedForward:
    bias, width, inner = traits.feed_forward_bias, shape.width, shape.feed_forward
    return FeedForward(
        width=inner,
        activation=activation,
        gate=None if style.gate is None else Linear.named(f"{at}.{style.gate}", width, inner, bias),
        up=Linear.named(f"{at}.{style.up}", width, inner, bias),
        down=Linear.named(f"{at}.{style.down}", inner, width, bias),
    )
