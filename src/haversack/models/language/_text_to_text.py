"""The encoder and the decoder that T5 and what descends from it share.

Norms are root-mean-square norms before each layer, scores are not scaled by the heads' width, positions are
what attention is biased by: one learned matrix for all blocks of the encoder, one for all of the decoder. The
blocks of the encoder come first, and what is written begins with the padding token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from haversack.models._architecture import (
    Architecture,
    Attention,
    Block,
    Branch,
    CrossAttention,
    FeedForward,
    Linear,
    Mixture,
    Norm,
    Reader,
)
from haversack.models._config import Config, refuse_others
from haversack.models._distance import DistanceBias

CONTEXT = 512
"""Tokens that the models were trained on, where a config does not say; they have no last position."""
MOST_BUCKETS = 1 << 16
SIDES = ("encoder", "decoder")

Feed = Callable[[str, int, str], FeedForward | Mixture]
"""(side, block of that side, module that holds the layer behind attention) -> that layer."""


@dataclass(frozen=True)
class Sizes:
    """Sizes that both sides have; `layers`: of encoder and decoder."""

    vocabulary: int
    width: int
    inner: int
    heads: int
    head_width: int
    layers: tuple[int, int]
    eps: float


def read_sizes(config: Config, classes: tuple[str, ...]) -> Sizes:
    """The sizes of a config. Raises UserError for one of another class than `classes`, for quantized weights
    and for half a model.
    """
    refuse_others(config, classes)
    layers = config.whole("num_layers", most=4096)
    return Sizes(
        vocabulary=config.whole("vocab_size"),
        width=config.whole("d_model"),
        inner=config.whole("d_ff"),
        heads=config.whole("num_heads", most=65536),
        head_width=config.whole("d_kv", most=65536),
        layers=(layers, config.whole("num_decoder_layers", layers, most=4096)),
        eps=config.number("layer_norm_epsilon", 1e-6, above=False),
    )


def dense(sizes: Sizes, module: str, activation: str, gated: bool = False) -> FeedForward:
    """The feed-forward layer `module`: wi (gated: wi_0, whose activation multiplies wi_1) and wo."""
    up = Linear.named(f"{module}.wi_1" if gated else f"{module}.wi", sizes.width, sizes.inner)
    gate = Linear.named(f"{module}.wi_0", sizes.width, sizes.inner) if gated else None
    down = Linear.named(f"{module}.wo", sizes.inner, sizes.width)
    return FeedForward(sizes.inner, activation, gate, up, down)


def text_to_text(
    family: str, config: Config, sizes: Sizes, feed: Feed, *, tied: bool, scaled: bool, own: bool = False
) -> Architecture:
    """The model whose layers behind attention `feed` makes.

    `tied`: the output matrix is the embedding; `scaled`: the states before it are divided by the root of
    their width. `own`: encoder and decoder have embeddings of their own.
    """
    blocks = [
        _block(config, sizes, feed, side, index)
        for side, count in zip(SIDES, sizes.layers, strict=True)
        for index in range(count)
    ]
    embedding = "decoder.embed_tokens.weight" if own else "shared.weight"
    pad = config.tokens("pad_token_id", sizes.vocabulary)
    start = config.tokens("decoder_start_token_id", sizes.vocabulary) or pad or (0,)
    return Architecture(
        family=family,
        vocabulary=sizes.vocabulary,
        width=sizes.width,
        context=config.whole("n_positions", CONTEXT),
        embedding=embedding,
        blocks=tuple(blocks),
        final_norm=_norm(sizes, "decoder.final_layer_norm"),
        head=Linear(embedding if tied else "lm_head.weight", sizes.width, sizes.vocabulary),
        end_of_text=config.tokens("eos_token_id", sizes.vocabulary),
        head_scale=sizes.width**-0.5 if scaled else 1.0,
        reader=Reader(
            sizes.layers[0],
            _norm(sizes, "encoder.final_layer_norm"),
            start[0],
            "encoder.embed_tokens.weight" if own else None,
        ),
    )


def _norm(sizes: Sizes, module: str) -> Norm:
    return Norm(f"{module}.weight", sizes.width, sizes.eps)


def _block(config: Config, sizes: Sizes, feed: Feed, side: str, index: int) -> Block:
    at = f"{side}.block.{index}.layer"
    written = side == "decoder"
    attention = Attention(
        **_attention(sizes, f"{at}.0.SelfAttention"), distance=_distance(config, sizes, side)
    )
    branches = [Branch(attention, _norm(sizes, f"{at}.0.layer_norm"))]
    if written:
        cross = CrossAttention(**_attention(sizes, f"{at}.1.EncDecAttention"))
        branches.append(Branch(cross, _norm(sizes, f"{at}.1.layer_norm")))
    last = f"{at}.{len(branches)}"
    branches.append(Branch(feed(side, index, last), _norm(sizes, f"{last}.layer_norm")))
    return Block(index + (sizes.layers[0] if written else 0), tuple(branches))


def _attention(sizes: Sizes, at: str) -> dict[str, Any]:
    inner = sizes.heads * sizes.head_width
    return {
        "heads": sizes.heads,
        "key_value_heads": sizes.heads,
        "head_width": sizes.head_width,
        "scale": 1.0,
        "query": Linear.named(f"{at}.q", sizes.width, inner),
        "key": Linear.named(f"{at}.k", sizes.width, inner),
        "value": Linear.named(f"{at}.v", sizes.width, inner),
        "output": Linear.named(f"{at}.o", inner, sizes.width),
    }


def _distance(config: Config, sizes: Sizes, side: str) -> DistanceBias:
    """What biases the attention of all blocks of a side: the matrix lies in its first block."""
    both_ways = side == "encoder"
    buckets = config.whole("relative_attention_num_buckets", 32, least=4, most=MOST_BUCKETS)
    reach = config.whole("relative_attention_max_distance", 128, most=MOST_BUCKETS)
    if reach <= buckets // 2:
        raise config.wrong(
            "relative_attention_max_distance",
            f"is not above half of relative_attention_num_buckets={buckets}",
            buckets // 2 + 1,
        )
    weight = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return DistanceBias(weight, buckets, sizes.heads, reach, both_ways)
