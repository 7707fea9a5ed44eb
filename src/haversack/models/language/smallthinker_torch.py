"""SmallThinker as a PyTorch module, for training the reference mixture and for parity tests.

Paper: Song et al., "SmallThinker: A Family of Efficient Large Language Models Natively Trained for Local
Deployment" (arXiv 2507.20984, 2025). The load-balance loss is that of Fedus et al., "Switch Transformers"
(2021), on sigmoid scores.
What is here: the decoder with the hub's own tensor names, so that ``state_dict()`` saved as safetensors loads
in the torch-free engine without renaming. Routers read the residual before the block's first norm; the share
of a chosen expert is its sigmoid score over the sum of the chosen ones. Every fourth block, from the first
on, attends to everything without positions, the others to a window with rotary positions. The output matrix
is the embedding (tied). A shape of one expert of which a token takes one is a dense model.
What we changed: the balance is kept over all tokens of a step [inferred]; the report keeps it within groups
of data-parallel workers [recalled].
Cost: 6 floating-point operations a token and parameter it meets (`active_parameters`) for one training step,
plus attention. Rows are sorted by expert, so that an expert is three products and no row is padded.
Limits: training and scoring only, no caches; neurons that are zero are computed like the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from haversack.models.language.llama_torch import Attention, RootMeanSquareNorm, draw, rotary_angles

FULL_EVERY = 4
"""Of so many blocks the first attends to everything, without positions."""


@dataclass(frozen=True)
class SmallThinkerShape:
    """Sizes of a SmallThinker decoder; ``hub_config`` writes them under the hub's names."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    experts: int
    top: int
    feed_forward: int
    window: int
    context: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6

    @property
    def windowed(self) -> tuple[bool, ...]:
        """For each block, whether it has a window and positions."""
        return tuple(index % FULL_EVERY != 0 for index in range(self.layers))

    def dense(self) -> SmallThinkerShape:
        """The same decoder with one expert as wide as the chosen ones of a token together."""
        return SmallThinkerShape(
            **{**vars(self), "experts": 1, "top": 1, "feed_forward": self.top * self.feed_forward}
        )

    def hub_config(self, end_of_text: int) -> dict[str, Any]:
        """The content of ``config.json``; ``end_of_text`` is the token that starts and ends a text."""
        layout = [int(windowed) for windowed in self.windowed]
        return {
            "architectures": ["SmallThinkerForCausalLM"],
            "model_type": "smallthinker",
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_width,
            "moe_num_primary_experts": self.experts,
            "moe_num_active_primary_experts": self.top,
            "moe_ffn_hidden_size": self.feed_forward,
            "moe_primary_router_apply_softmax": False,
            "moe_enable_early_router": True,
            "moe_enable_secondary_experts": False,
            "moe_layer_layout": [1] * self.layers,
            "norm_topk_prob": True,
            "rope_layout": layout,
            "sliding_window_layout": layout,
            "sliding_window_size": self.window,
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": True,
            "bos_token_id": end_of_text,
            "eos_token_id": end_of_text,
            "torch_dtype": "float16",
        }

    @classmethod
    def from_hub_config(cls, config: dict[str, Any]) -> SmallThinkerShape:
        """Inverse of ``hub_config``."""
        return cls(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            key_value_heads=config["num_key_value_heads"],
            head_width=config["head_dim"],
            experts=config["moe_num_primary_experts"],
            top=config["moe_num_active_primary_experts"],
            feed_forward=config["moe_ffn_hidden_size"],
            window=config["sliding_window_size"],
            context=config["max_position_embeddings"],
            rope_theta=config["rope_theta"],
            norm_eps=config["rms_norm_eps"],
        )


def routed(logits: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Chosen experts and their shares, [n, top] each, and all scores [n, experts], of ``logits``."""
    scores = logits.sigmoid()
    values, chosen = scores.topk(top, dim=-1)
    return chosen, values / values.sum(-1, keepdim=True), scores


def load_balance(scores: Tensor, counts: Tensor) -> Tensor:
    """Switch's loss, 1 when even: experts times the sum, over experts, of the share of rows that went there
    and the mean of the score in proportion to all; ``counts`` are the rows of each expert.
    """
    proportions = (scores / scores.sum(-1, keepdim=True)).mean(0)
    return scores.shape[-1] * (counts / counts.sum() * proportions).sum()


def products_in_turn(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Rows [n, inputs] times the matrices [experts, inputs, outputs] they are sorted by: those of expert e
    end before row ``ends[e]``.
    """
    first = torch.cat((ends.new_zeros(1), ends[:-1]))
    parts = rows.split((ends - first).tolist())
    return torch.cat([part @ matrix for part, matrix in zip(parts, matrices, strict=True)])


def products(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """The same in one call, which can be compiled, where PyTorch has it (2.10 and later)."""
    grouped = getattr(functional, "grouped_mm", None)
    return products_in_turn(rows, matrices, ends) if grouped is None else grouped(rows, matrices, offs=ends)


class Permuted(torch.autograd.Function):
    """``rows[there]`` for a permutation ``there`` with the inverse ``back``: both ways are gathers."""

    @staticmethod
    def forward(context: Any, rows: Tensor, there: Tensor, back: Tensor) -> Tensor:
        context.save_for_backward(back)
        return rows[there]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (back,) = context.saved_tensors
        return gradient[back], None, None


class Expert(nn.Module):
    """The matrices of down(relu(gate(x)) * up(x)); `Mixture` multiplies with them."""

    def __init__(self, shape: SmallThinkerShape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.up = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.down = nn.Linear(shape.feed_forward, shape.width, bias=False)


class Mixture(nn.Module):
    """A router and its experts."""

    def __init__(self, shape: SmallThinkerShape) -> None:
        super().__init__()
        self.top = shape.top
        self.primary_router = nn.Linear(shape.width, shape.experts, bias=False)
        self.experts = nn.ModuleList(Expert(shape) for _ in range(shape.experts))

    def matrices(self, name: str, kind: torch.dtype) -> Tensor:
        """One matrix of every expert, turned: [experts, inputs, outputs]."""
        return torch.stack([getattr(expert, name).weight for expert in self.experts]).to(kind).mT

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The mixture of normed rows ``x`` [..., width], chosen by ``residual``, and its load balance."""
        flat = x.flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):  # which experts, and how much, is not rounded
            logits = functional.linear(residual.flatten(0, -2).float(), self.primary_router.weight)
            chosen, shares, scores = routed(logits, self.top)
        order = chosen.flatten().argsort(stable=True)
        places = order.argsort()
        experts = torch.arange(len(self.experts), device=x.device)
        counts = (chosen.flatten()[:, None] == experts).sum(0)
        ends = counts.cumsum(0).to(torch.int32)
        device = x.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        rows = flat.to(kind)[:, None].expand(-1, self.top, -1).reshape(-1, x.shape[-1])
        rows = Permuted.apply(rows, order, places)
        gate = products(rows, self.matrices("gate", kind), ends)
        up = products(rows, self.matrices("up", kind), ends)
        down = products(gate.relu() * up, self.matrices("down", kind), ends)
        back = Permuted.apply(down, places, order).view(-1, self.top, x.shape[-1])
        mixed = (back * shares[..., None].to(kind)).sum(1)
        return mixed.view_as(x), load_balance(scores, counts)


class Block(nn.Module):
    """Attention and a mixture, each behind a norm and added to the residual; the router reads the input."""

    def __init__(self, shape: SmallThinkerShape, windowed: bool) -> None:
        super().__init__()
        self.input_layernorm = RootMeanSquareNorm(shape.width, shape.norm_eps)
        self.self_attn = Attention(shape, rotary=windowed, window=shape.window if windowed else None)
        self.post_attention_layernorm = RootMeanSquareNorm(shape.width, shape.norm_eps)
        self.block_sparse_moe = Mixture(shape)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        attended = x + self.self_attn(self.input_layernorm(x), cosine, sine)
        mixed, balance = self.block_sparse_moe(self.post_attention_layernorm(attended), x)
        return attended + mixed, balance


class Decoder(nn.Module):
    """Embedding, blocks and the last norm; named ``model`` in the hub's tensor names."""

    def __init__(self, shape: SmallThinkerShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Block(shape, windowed) for windowed in shape.windowed)
        self.norm = RootMeanSquareNorm(shape.width, shape.norm_eps)


class SmallThinker(nn.Module):
    """A SmallThinker decoder whose output matrix is its embedding."""

    def __init__(self, shape: SmallThinkerShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)

    def initialize(self, seed: int) -> None:
        """Draw the weights; see ``draw``."""
        draw(self, seed, ("o_proj.weight", "down.weight"))

    def active_parameters(self) -> int:
        """The parameters that a token meets: all but the experts it does not take."""
        shape = self.shape
        idle = shape.layers * (shape.experts - shape.top) * 3 * shape.width * shape.feed_forward
        return sum(value.numel() for value in self.parameters()) - idle

    def hidden_and_balance(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Last normed hidden state [batch, length, width] of ``tokens`` [batch, length], and the mean of the
        blocks' load balance.
        """
        x = self.model.embed_tokens(tokens)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        cosine, sine = rotary_angles(positions, self.shape.head_width, self.shape.rope_theta)
        balances = []
        for block in self.model.layers:
            x, balance = block(x, cosine, sine)
            balances.append(balance)
        return self.model.norm(x), torch.stack(balances).mean()

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, length, vocabulary] of the token after each of ``tokens`` [batch, length]."""
        return functional.linear(self.hidden_and_balance(tokens)[0], self.model.embed_tokens.weight)
