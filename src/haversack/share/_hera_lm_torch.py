"""Learning a language-model router in PyTorch: low-rank factors beside a frozen checkpoint, a classifier
on the last token, by the same labels and weights as the small router."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from haversack.core._files import write_atomically
from haversack.core.errors import UserError
from haversack.models._adapter import Pair, adapted_matrices, merged_tensors
from haversack.models._adapter_torch import Beside
from haversack.models._blocks_torch import block_forward, embed, norm_forward
from haversack.models._hub_write import check_folder_goal, config_text, write_folder
from haversack.run._source import Model
from haversack.run.export._tensors import numbers
from haversack.share._hera_lm import HEAD, head_file, read_of
from haversack.share._routing import Asked


class LanguageLearning(nn.Module):
    """The router in learning: `logit(states)`; its parameters are the factors and the classifier.

    The checkpoint's own tensors stay as they are, in f32.
    """

    def __init__(self, model: Model, *, rank: int = 8, alpha: float = 16.0, seed: int = 0) -> None:
        super().__init__()
        self.model, self.scale, self.rank = model, alpha / rank, rank
        self.architecture = model.architecture
        self.tokenizer = model.tokenizer()
        self.tensors: dict[str, Tensor] = {}
        for name, shape in self.architecture.tensors().items():
            values = np.concatenate([piece.reshape(-1) for piece in numbers(model.source, name)])
            self.tensors[name] = torch.from_numpy(values.reshape(shape).copy())
        draw = torch.Generator().manual_seed(seed)
        self.first, self.second = nn.ParameterList(), nn.ParameterList()
        self.names: dict[str, int] = {}
        for name, (block, linear) in adapted_matrices(self.architecture).items():
            outputs, inputs = self.tensors[linear.weight].shape
            bound = inputs**-0.5
            drawn = (2 * torch.rand(rank, inputs, generator=draw) - 1) * bound
            self.first.append(nn.Parameter(drawn))
            self.second.append(nn.Parameter(torch.zeros(outputs, rank)))
            self.names[name] = block
        self.weight = nn.Parameter(torch.zeros(self.architecture.width))
        self.bias = nn.Parameter(torch.zeros(1))

    def logit(self, state: Asked) -> Tensor:
        """One state's logit, as the deciding side reads it."""
        text = read_of(state, self.architecture.context, self.tokenizer)
        tokens = torch.tensor([list(self.tokenizer.encode(text))], dtype=torch.int64)
        factors = {
            name: (first, second, self.scale)
            for name, first, second in zip(self.names, self.first, self.second, strict=True)
        }
        hooks = Beside(factors)
        hidden = embed(self.architecture, tokens, self.tensors)
        for block in self.architecture.blocks:
            hidden = block_forward(block, hidden, self.tensors, hooks)
        norm = self.architecture.final_norm
        last = hidden[0, -1:] if norm is None else norm_forward(norm, hidden[0, -1:], self.tensors)
        return last[0].float() @ self.weight + self.bias[0]

    def pairs(self) -> dict[str, Pair]:
        """The factors as an adapter's."""
        return {
            name: Pair(name, block, first.detach().numpy(), second.detach().numpy(), self.scale)
            for (name, block), first, second in zip(self.names.items(), self.first, self.second, strict=True)
        }

    def save(self, goal: Path) -> None:
        """The folder that `LanguageRouter.open` reads: the merged checkpoint and the classifier."""
        check_folder_goal(goal, HEAD)
        source: Any = self.model.source
        tensors = merged_tensors(source, self.architecture, self.pairs())
        write_folder(goal, tensors, {"config.json": config_text(source.config)}, carry=self.model.path)
        write_atomically(goal / HEAD, head_file(self.weight.detach().numpy(), float(self.bias.detach()[0])))


def fit_language(
    learning: LanguageLearning,
    states: Sequence[Asked],
    labels: Sequence[float],
    weights: Sequence[float],
    *,
    epochs: int = 3,
    rate: float = 1e-5,
    head_rate: float = 1e-3,
    batch: int = 8,
    seed: int = 0,
    anchor: dict[str, Tensor] | None = None,
    hold: float = 0.0,
    say: Callable[[float], None] = lambda loss: None,
) -> list[float]:
    """Weighted binary cross-entropy by AdamW; with `anchor` (names to parameters), `hold` * ||theta -
    anchor||^2 is added. Returns each epoch's mean loss."""
    if not states:
        raise UserError("there is no labelled state to learn from.", field="traces")
    head = {"weight", "bias"}
    named = dict(learning.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [value for name, value in named.items() if name not in head], "lr": rate},
            {"params": [named[name] for name in sorted(head)], "lr": head_rate},
        ]
    )
    draw = np.random.default_rng([seed, 41])
    losses = []
    for _ in range(epochs):
        total = 0.0
        order = draw.permutation(len(states))
        for begin in range(0, len(order), batch):
            chosen = order[begin : begin + batch]
            logits = torch.stack([learning.logit(states[at]) for at in chosen])
            wanted = torch.tensor([float(labels[at]) for at in chosen])
            worth = torch.tensor([float(weights[at]) for at in chosen])
            each = nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
            loss = (each * worth).sum() / worth.sum().clamp(min=1e-9)
            total += float(loss.detach()) * len(chosen)
            if anchor is not None and hold > 0:
                loss = (
                    loss + hold * torch.stack([((named[n] - a) ** 2).sum() for n, a in anchor.items()]).sum()
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        losses.append(total / len(states))
        say(losses[-1])
    return losses
