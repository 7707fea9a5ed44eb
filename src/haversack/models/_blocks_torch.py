"""The blocks of a model as PyTorch functions of their weights, for methods that learn through them.

    after = block_forward(block, hidden, weights, hooks)

`weights` maps the tensor names of the records to tensors; matrices stay [outputs, inputs]. The arithmetic is
that of the engine in `run/` (to 1e-4; PyTorch adds in another order). `Hooks` stand between: each weight
passes `weight` before it is used, each number that a device might round passes `activation` at a named
`Point`. Points of a matrix are named by it, those of a norm by its weight, those inside attention by its
output matrix and those of a gate by the down matrix.

Rows are whole texts: hidden f32 [texts, n, width], every token sees those before it (decoders) or all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from haversack.core.errors import UserError
from haversack.models._architecture import (
    Architecture,
    Attention,
    Block,
    CrossAttention,
    FeedForward,
    HeadNorm,
    Layer,
    Linear,
    Mixture,
    Norm,
)
from haversack.models._rope import Rope
from haversack.models._rotary import rotary_tables

Weights = Mapping[str, Tensor]
MixtureFunction = Callable[[Mixture, Tensor, Tensor], Tensor]

PLACES = ("input", "output", "query", "key", "value", "scores", "shares", "gate", "activated")
"""`input` and `output` of a matrix or a norm (an output with its bias); `query`, `key` and `value` as they
meet in attention, rotated; `scores` and `shares` before and after the softmax; `gate`, what the activation
function is given, and `activated`, what it gives. What attention and gate give is the `input` of the matrix
after them."""


class Point(NamedTuple):
    """Where a number passes: the tensor it is named by, and one of PLACES."""

    name: str
    place: str


class Hooks:
    """What stands between a model and its numbers; this one changes nothing.

    `inside`: the points `scores` and `shares` are wanted, which takes n x n numbers a head in memory.
    """

    inside = False

    def weight(self, name: str, tensor: Tensor) -> Tensor:
        """What is used for the tensor `name`: matrices, norms and biases."""
        return tensor

    def activation(self, point: Point, tensor: Tensor) -> Tensor:
        """What is used for the activations at `point`, of the same shape [..., channels]."""
        return tensor


PLAIN = Hooks()


class _Call(NamedTuple):
    """What a layer is given beside its input."""

    weights: Weights
    hooks: Hooks
    causal: bool
    horizon: int
    context: Tensor | None = None

    def get(self, name: str) -> Tensor:
        return self.hooks.weight(name, self.weights[name])


def block_forward(
    block: Block,
    hidden: Tensor,
    weights: Weights,
    hooks: Hooks = PLAIN,
    *,
    causal: bool = True,
    horizon: int = 0,
    context: Tensor | None = None,
    mixture: MixtureFunction | None = None,
) -> Tensor:
    """Hidden states [texts, n, width] after `block`.

    `causal` False lets every token see all others, as in encoders. `horizon`: see `rotary_tables`. `context`
    [texts, m, width] are the states of an encoder that cross-attention sees. `mixture` is given the mixture
    of experts of a block, its input and what came into the block, and makes its output.
    """
    call = _Call(weights, hooks, causal, horizon, context)
    entry = hidden
    normal: dict[Norm, Tensor] = {}  # of a parallel block, whose branches may share their norm
    for branch in block.branches:
        x = entry if block.parallel else hidden
        if branch.norm is not None:
            if branch.norm not in normal or not block.parallel:
                normal[branch.norm] = normalize(branch.norm, x, call)
            x = normal[branch.norm]
        if mixture is not None and isinstance(branch.layer, Mixture):
            out = mixture(branch.layer, x, entry)
        else:
            out = _layer(branch.layer)(branch.layer, x, call)
        if branch.post_norm is not None:
            out = normalize(branch.post_norm, out, call)
        hidden = hidden + out
        if branch.after_norm is not None:
            hidden = normalize(branch.after_norm, hidden, call)
    return hidden


def embed(architecture: Architecture, tokens: Tensor, weights: Weights, hooks: Hooks = PLAIN) -> Tensor:
    """Hidden states [texts, n, width] of `tokens` i64 [texts, n]."""
    call = _Call(weights, hooks, True, 0)
    hidden = functional.embedding(tokens, call.get(architecture.embedding))
    if architecture.embedding_scale != 1.0:
        hidden = hidden * architecture.embedding_scale
    if architecture.project_in is not None:
        hidden = _product(architecture.project_in, hidden, call)
    learned = architecture.positions
    if learned is not None:
        hidden = hidden + call.get(learned.weight)[learned.offset : learned.offset + tokens.shape[1]]
    return hidden


def through_blocks(
    architecture: Architecture,
    hidden: Tensor,
    weights: Weights,
    hooks: Hooks = PLAIN,
    *,
    horizon: int = 0,
    checkpointed: bool = False,
) -> Tensor:
    """Hidden states after the last block, before the final norm.

    `checkpointed` keeps only the states between blocks for the way back and computes each block again there:
    memory of one block, for a third more time.
    """
    for block in architecture.blocks:
        if checkpointed:
            hidden = checkpoint(  # type: ignore[no-untyped-call]
                block_forward, block, hidden, weights, hooks, horizon=horizon, use_reentrant=False
            )
        else:
            hidden = block_forward(block, hidden, weights, hooks, horizon=horizon)
    return hidden


def logits_of(architecture: Architecture, hidden: Tensor, weights: Weights, hooks: Hooks = PLAIN) -> Tensor:
    """Logits [texts, n, vocabulary] of what the last block gave."""
    call = _Call(weights, hooks, True, 0)
    if architecture.final_norm is not None:
        hidden = normalize(architecture.final_norm, hidden, call)
    if architecture.project_out is not None:
        hidden = _product(architecture.project_out, hidden, call)
    logits = _product(architecture.head, hidden, call)
    cap = architecture.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


# Layers


def _attention(layer: Attention, x: Tensor, call: _Call) -> Tensor:
    """Grouped-query attention over the text itself."""
    heads = (layer.heads, layer.key_value_heads, layer.key_value_heads)
    query, key, value = (
        _product(linear, x, call).unflatten(-1, (count, layer.head_width))
        for linear, count in zip((layer.query, layer.key, layer.value), heads, strict=True)
    )
    query = _normalize_heads(layer.query_norm, query, call)
    key = _normalize_heads(layer.key_norm, key, call)
    if layer.rope is not None:
        cosine, sine = _tables(layer.rope, x.shape[1], call.horizon, x)
        query, key = (rotated(each, cosine, sine, layer.rope.style) for each in (query, key))
    seen = _attend(layer, query, key, value, call, call.causal, layer.window, layer.softcap)
    return _product(layer.output, seen, call)


def _cross_attention(layer: CrossAttention, x: Tensor, call: _Call) -> Tensor:
    """Attention of the text to an encoder's states: every token sees every state."""
    if call.context is None:
        raise UserError("cross-attention needs the states of an encoder.", field="context", given=None)
    places = ((layer.key, call.context), (layer.value, call.context), (layer.query, x))
    counts = (layer.key_value_heads, layer.key_value_heads, layer.heads)
    key, value, query = (
        _product(linear, given, call).unflatten(-1, (count, layer.head_width))
        for (linear, given), count in zip(places, counts, strict=True)
    )
    return _product(layer.output, _attend(layer, query, key, value, call, False, None, None), call)


def _attend(
    layer: Attention | CrossAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    call: _Call,
    causal: bool,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """query [texts, n, heads, d] over key and value [texts, m, fewer heads, d] -> [texts, n, heads * d]."""
    name, hooks = layer.output.weight, call.hooks
    query = hooks.activation(Point(name, "query"), query.flatten(-2)).unflatten(-1, query.shape[-2:])
    key = hooks.activation(Point(name, "key"), key.flatten(-2)).unflatten(-1, key.shape[-2:])
    value = hooks.activation(Point(name, "value"), value.flatten(-2)).unflatten(-1, value.shape[-2:])
    shared = layer.heads // layer.key_value_heads
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    if shared > 1:
        key, value = (each.repeat_interleave(shared, dim=1) for each in (key, value))
    n, m = query.shape[2], key.shape[2]
    window = window if causal and window is not None and window < n else None
    if not hooks.inside and softcap is None and window is None:
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=layer.scale)
        return out.transpose(1, 2).flatten(-2)
    scores = query @ key.transpose(-1, -2) * layer.scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = hooks.activation(Point(name, "scores"), scores)
    if causal:
        distance = torch.arange(n)[:, None] - torch.arange(m)[None, :]
        hidden = (distance < 0) | (distance >= window) if window is not None else distance < 0
        scores = scores.masked_fill(hidden.to(scores.device), float("-inf"))
    shares = hooks.activation(Point(name, "shares"), scores.softmax(dim=-1))
    return (shares @ value).transpose(1, 2).flatten(-2)


def _feed_forward(layer: FeedForward, x: Tensor, call: _Call) -> Tensor:
    """down(activation(gate(x)) * up(x)), or down(activation(up(x)))."""
    name, hooks = layer.down.weight, call.hooks
    first = layer.up if layer.gate is None else layer.gate
    inner = hooks.activation(Point(name, "gate"), _product(first, x, call))
    inner = hooks.activation(Point(name, "activated"), ACTIVATIONS[layer.activation](inner))
    if layer.gate is not None:
        inner = inner * _product(layer.up, x, call)
    return _product(layer.down, inner, call)


_LAYERS: dict[str, Callable[..., Tensor]] = {
    "attention": _attention,
    "cross_attention": _cross_attention,
    "feed_forward": _feed_forward,
}


def _layer(layer: Layer) -> Callable[..., Tensor]:
    found = _LAYERS.get(layer.kind)
    if found is None:
        raise UserError(
            f"blocks with the layer {layer.kind} cannot be learned through (allowed: {', '.join(_LAYERS)}).",
            field="model",
            given=layer.kind,
        )
    return found


# Parts of layers


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu-tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}


def _product(linear: Linear, x: Tensor, call: _Call) -> Tensor:
    x = call.hooks.activation(Point(linear.weight, "input"), x)
    bias = None if linear.bias is None else call.get(linear.bias)
    out = functional.linear(x, call.get(linear.weight), bias)
    return call.hooks.activation(Point(linear.weight, "output"), out)


def norm_forward(norm: Norm, x: Tensor, weights: Weights, hooks: Hooks = PLAIN) -> Tensor:
    """The rows of x [..., width] normalized."""
    return normalize(norm, x, _Call(weights, hooks, True, 0))


def normalize(norm: Norm, x: Tensor, call: _Call) -> Tensor:
    """The rows of x, or its heads, normalized."""
    x = call.hooks.activation(Point(norm.weight, "input"), x)
    weight = call.get(norm.weight) + norm.offset
    if norm.kind == "rms":
        out = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * weight
        if norm.bias is not None:
            out = out + call.get(norm.bias)
    else:
        bias = None if norm.bias is None else call.get(norm.bias)
        out = functional.layer_norm(x, x.shape[-1:], weight, bias, norm.eps)
    return call.hooks.activation(Point(norm.weight, "output"), out)


def _normalize_heads(norm: HeadNorm | None, x: Tensor, call: _Call) -> Tensor:
    """The heads [..., heads, d] normalized, by one norm, each by its own, or all as one."""
    if norm is None:
        return x
    if isinstance(norm, Norm):
        if norm.width == x.shape[-1]:
            return normalize(norm, x, call)
        return normalize(norm, x.flatten(-2), call).unflatten(-1, x.shape[-2:])
    heads: Sequence[Tensor] = [normalize(each, x[..., i, :], call) for i, each in enumerate(norm)]
    return torch.stack(list(heads), dim=-2)


def rotated(x: Tensor, cosine: Tensor, sine: Tensor, style: str) -> Tensor:
    """Heads [texts, n, heads, d] turned by tables [n, width / 2]; what is beyond the width stays."""
    half = cosine.shape[1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    cosine, sine = cosine[:, None, :], sine[:, None, :]
    if style == "half":
        one, two = turned[..., :half], turned[..., half:]
        return torch.cat([one * cosine - two * sine, two * cosine + one * sine, rest], dim=-1)
    one, two = turned[..., 0::2], turned[..., 1::2]
    pairs = torch.stack([one * cosine - two * sine, two * cosine + one * sine], dim=-1)
    return torch.cat([pairs.flatten(-2), rest], dim=-1)


def _tables(rope: Rope, n: int, horizon: int, like: Tensor) -> tuple[Tensor, Tensor]:
    cosine, sine = rotary_tables(rope, np.arange(n, dtype=np.int32), horizon)
    return torch.from_numpy(cosine).to(like), torch.from_numpy(sine).to(like)
