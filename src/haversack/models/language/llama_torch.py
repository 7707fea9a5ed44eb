"""Llama as a PyTorch module, for training the reference models and for parity tests.

Paper: Touvron et al., "LLaMA: Open and Efficient Foundation Language Models" (2023), with grouped key and
value heads.
What is here: the decoder with the hub's own tensor names, so that ``state_dict()`` saved as safetensors loads
in ``transformers.LlamaForCausalLM`` and in our torch-free engine without renaming. The output matrix is the
embedding (tied). Left out: caches, masks other than causal, dropout and biases; training needs none of them.
Cost: 6 floating-point operations a parameter and token for one training step, plus attention.
Limits: training and scoring only; the torch-free engine in ``run/`` is the one that generates for users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama decoder; ``hub_config`` writes them under the hub's names."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    feed_forward: int
    context: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def hub_config(self, end_of_text: int) -> dict[str, Any]:
        """The content of ``config.json``; ``end_of_text`` is the token that starts and ends a text."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_width,
            "hidden_act": "silu",
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": end_of_text,
            "eos_token_id": end_of_text,
            "torch_dtype": "float16",
        }

    @classmethod
    def from_hub_config(cls, config: dict[str, Any]) -> LlamaShape:
        """Inverse of ``hub_config``."""
        return cls(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            key_value_heads=config["num_key_value_heads"],
            feed_forward=config["intermediate_size"],
            context=config["max_position_embeddings"],
            rope_theta=config["rope_theta"],
            norm_eps=config["rms_norm_eps"],
        )


def rotary_angles(positions: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each [n, head_width], of rotary position encoding at ``positions`` [n]."""
    exponents = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32) / head_width
    angles = positions.float()[:, None] / theta ** exponents[None, :]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (i, i + head_width / 2) of ``vectors`` [..., n, head_width] by its angle."""
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cosine + torch.cat((-second, first), dim=-1) * sine


class RootMeanSquareNorm(nn.Module):
    """x / rms(x) * weight, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


class Attention(nn.Module):
    """Causal attention with grouped key and value heads; rotary positions and a window where it has them.

    ``shape`` has ``width``, ``heads``, ``key_value_heads`` and ``head_width``.
    """

    def __init__(self, shape: Any, rotary: bool = True, window: int | None = None) -> None:
        super().__init__()
        self.head_width = shape.head_width
        self.rotary, self.window = rotary, window
        self.q_proj = nn.Linear(shape.width, shape.heads * shape.head_width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.key_value_heads * shape.head_width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.key_value_heads * shape.head_width, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_width, shape.width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query, key, value = (
            projection(x).view(batch, length, -1, self.head_width).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.rotary:
            cosine, sine = cosine.to(query.dtype), sine.to(query.dtype)
            query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
        group = query.shape[1] // key.shape[1]
        if group > 1:
            key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        if self.window is None or length <= self.window:
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            places = torch.arange(length, device=x.device)
            age = places[:, None] - places[None, :]
            seen = (age >= 0) & (age < self.window)
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


def draw(model: nn.Module, seed: int, silent: tuple[str, ...]) -> None:
    """Draw the matrices of ``model``: N(0, 1 / fan-in), the embedding N(0, 0.02^2); those whose names end as
    ``silent`` says, which write to the residual, start at zero.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                continue
            if name.endswith(silent):
                parameter.zero_()
            else:
                deviation = 0.02 if "embed_tokens" in name else parameter.shape[1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.input_layernorm = RootMeanSquareNorm(shape.width, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RootMeanSquareNorm(shape.width, shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, blocks and the last norm; named ``model`` in the hub's tensor names."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RootMeanSquareNorm(shape.width, shape.norm_eps)


class Llama(nn.Module):
    """A Llama decoder whose output matrix is its embedding."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)

    def initialize(self, seed: int) -> None:
        """Draw the weights; see ``draw``."""
        draw(self, seed, ("o_proj.weight", "down_proj.weight"))

    def hidden(self, tokens: Tensor) -> Tensor:
        """Last normed hidden state [batch, length, width] of ``tokens`` [batch, length]."""
        x = self.model.embed_tokens(tokens)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        cosine, sine = rotary_angles(positions, self.shape.head_width, self.shape.rope_theta)
        for block in self.model.layers:
            x = block(x, cosine, sine)
        return self.model.norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, length, vocabulary] of the token after each of ``tokens`` [batch, length]."""
        return functional.linear(self.hidden(tokens), self.model.embed_tokens.weight)
