"""Training the twins: the reference module, and the same with its routers behind attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from haversack.formats.safetensors import write_safetensors
from haversack.models.language.smallthinker_torch import Block, SmallThinker, SmallThinkerShape

I32 = NDArray[np.int32]


class LateBlock(Block):
    """A block whose router reads what its experts read: the normed residual after attention."""

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        attended = x + self.self_attn(self.input_layernorm(x), cosine, sine)
        normal = self.post_attention_layernorm(attended)
        mixed, balance = self.block_sparse_moe(normal, normal)
        return attended + mixed, balance


def twin(shape: SmallThinkerShape, *, early: bool, seed: int) -> SmallThinker:
    """A model with drawn weights: the same ones, whichever way its routers are placed."""
    model = SmallThinker(shape)
    if not early:
        model.model.layers = torch.nn.ModuleList(LateBlock(shape, windowed) for windowed in shape.windowed)
    model.initialize(seed)
    return model


def train(
    goal: Path,
    shape: SmallThinkerShape,
    tokens: I32,
    *,
    early: bool,
    steps: int,
    batch: tuple[int, int],
    rate: float,
    balance: float,
    seed: int,
) -> None:
    """Train a twin on `tokens`, `steps` of `batch` (rows, length), and save it as a hub folder."""
    torch.manual_seed(seed)
    model = twin(shape, early=early, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    rng, (rows, length) = np.random.default_rng(seed), batch
    table = model.model.embed_tokens
    for _ in range(steps):
        starts = rng.integers(0, len(tokens) - length - 1, rows)
        text = torch.from_numpy(np.stack([tokens[at : at + length + 1] for at in starts]).astype(np.int64))
        hidden, evenness = model.hidden_and_balance(text[:, :-1])
        logits = functional.linear(hidden, table.weight)
        loss = functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten()) + balance * evenness
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    save(goal, model, early=early)


def save(goal: Path, model: SmallThinker, *, early: bool) -> None:
    """The model as a hub folder in f32."""
    goal.mkdir(parents=True)
    tensors = [
        (name, "f32", tuple(value.shape), value.detach().numpy().astype("<f4").tobytes())
        for name, value in model.state_dict().items()
    ]
    write_safetensors(goal / "model.safetensors", tensors)
    config: dict[str, Any] = {**model.shape.hub_config(0), "moe_enable_early_router": early}
    (goal / "config.json").write_text(json.dumps(config))
