"""D2MoE's bit routers, trained: the model stays frozen, and one small linear for each expert learns how many
bits each token needs.

The loss is the cross-entropy of the mixed-precision model's next-token chances to the full model's, plus
alpha times the mean bits that routers expect. The forward pass takes the likeliest level of each token; the
gradient goes through the chances of all levels, each times what its level makes of the token
(straight-through) [inferred]. For a target of mean bits alpha moves with the difference while training, and
at the end one number for all routers, times a level's bits, is added to the biases so that the target is met
on the text [inferred].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from haversack.models._architecture import FeedForward, Mixture
from haversack.models._blocks_torch import ACTIVATIONS, block_forward, embed, logits_of
from haversack.models._experts import Experts, identity
from haversack.run._levels import BitRouters
from haversack.shrink._source import read_tensor

TOKENS = 1024
"""Of a step."""
RATE, ALPHA_RATE = 3e-3, 0.02
HALVINGS = 40


def chosen_of(layer: Mixture, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Experts i64 [n, top] and shares [n, top] of a router's numbers [n, experts]; kernels/routing.py."""
    best, experts = scores.topk(layer.top, dim=-1)
    given = best if layer.scored == "chosen" else scores
    found = given.softmax(dim=-1) if layer.scoring == "softmax" else given.sigmoid()
    shares = found if layer.scored == "chosen" else found.gather(-1, experts)
    if layer.normalized:
        shares = shares / shares.sum(dim=-1, keepdim=True)
    return experts, shares


def dropped(levels: Tensor, capacity: Sequence[float], generator: torch.Generator) -> Tensor:
    """Which of `levels` i64 [n] are above the capacity of their level: drawn, bool [n]."""
    found = torch.zeros_like(levels, dtype=torch.bool)
    for level, share in enumerate(capacity):
        places = (levels == level).nonzero()[:, 0]
        room = int(np.ceil(share * len(levels)))
        if len(places) > room:
            drawn = torch.randperm(len(places), generator=generator)[room:]
            found[places[drawn]] = True
    return found


class Training:
    """One training; `made` are the nested matrices, `capacity` as for `train_bit_router`."""

    def __init__(
        self,
        source: Any,
        walk: Any,
        experts: Experts,
        made: Mapping[str, Any],
        capacity: Sequence[float] | None,
        seed: int,
    ) -> None:
        self.architecture = walk.architecture
        self.experts, self.capacity = experts, capacity
        self.identity = identity(source, self.architecture)
        self.weights = {
            name: torch.from_numpy(read_tensor(source, name).copy()) for name in self.architecture.tensors()
        }
        self.bits: tuple[int, ...] = next(iter(made.values())).bits
        self.nested = {
            name: [torch.from_numpy(tensor.dequant(bits)) for bits in self.bits]
            for name, tensor in made.items()
        }
        self.seed = seed
        self._layers = {block: layer for layer, block in enumerate(experts.blocks)}
        shape = (len(experts.blocks), experts.count, len(self.bits))
        self.router = torch.zeros((*shape, self.architecture.width), requires_grad=True)
        self.bias = torch.zeros(shape, requires_grad=True)
        self._widths = torch.tensor([float(bits) for bits in self.bits])
        self._generator = torch.Generator().manual_seed(seed)
        self._expected: list[Tensor] = []
        self._scores: list[Tensor] = []

    def run(
        self, texts: np.ndarray, target_bits: float | None, alpha: float | None, steps: int
    ) -> BitRouters:
        """Train, and meet the target."""
        rng = np.random.default_rng(self.seed)
        tokens = torch.from_numpy(np.ascontiguousarray(texts, np.int64))
        at_once = max(1, TOKENS // texts.shape[1])
        optimizer = torch.optim.Adam([self.router, self.bias], lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        weight = 0.0 if alpha is None else alpha
        for _ in range(steps):
            batch = tokens[rng.integers(0, len(tokens), at_once)]
            with torch.no_grad():
                wanted = self.logits(batch, None).softmax(dim=-1)
            self._expected = []
            given = self.logits(batch, self.capacity or ()).log_softmax(dim=-1)
            expected = torch.stack(self._expected).mean()
            loss = -(wanted * given).sum(dim=-1).mean() + weight * expected
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if alpha is None and target_bits is not None:
                weight += ALPHA_RATE * (float(expected.detach()) - target_bits)
        if target_bits is not None:
            self.meet(tokens, target_bits)
        return BitRouters(
            self.router.detach().numpy().astype(np.float16),
            self.bias.detach().numpy().astype(np.float32),
            self.identity,
            self.experts.blocks,
            self.bits[0],
        )

    def meet(self, tokens: Tensor, target_bits: float) -> None:
        """Add to the biases so that the mean of the chosen bits on `tokens` is `target_bits`.

        Levels that are chosen change those of later layers, so it is done twice.
        """
        for _ in range(2):
            self._scores, self._expected = [], []
            with torch.no_grad():
                for piece in tokens.split(max(1, TOKENS // tokens.shape[1])):
                    self.logits(piece, ())
            scores = torch.cat(self._scores)
            low, high = -100.0, 100.0
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                levels = (scores + middle * self._widths).argmax(dim=-1)
                if float(self._widths[levels].mean()) < target_bits:
                    low = middle
                else:
                    high = middle
            with torch.no_grad():
                self.bias += (low + high) / 2 * self._widths

    def logits(self, tokens: Tensor, capacity: Sequence[float] | None) -> Tensor:
        """Logits of `tokens` [texts, n] with levels chosen by the routers; of the full model where `capacity`
        is None. Empty: nothing is dropped."""
        hidden = embed(self.architecture, tokens, self.weights)
        for block in self.architecture.blocks:

            def mixture(layer: Mixture, x: Tensor, entry: Tensor, number: int = block.index) -> Tensor:
                return self._mixture(layer, x, entry, self._layers[number], capacity)

            hidden = block_forward(block, hidden, self.weights, mixture=mixture)
        return logits_of(self.architecture, hidden, self.weights)

    def _mixture(
        self, layer: Mixture, x: Tensor, entry: Tensor, number: int, capacity: Sequence[float] | None
    ) -> Tensor:
        shape = x.shape
        x, seen = x.reshape(-1, shape[-1]), (entry if layer.tap == "residual" else x).reshape(-1, shape[-1])
        experts, shares = chosen_of(layer, functional.linear(seen, self.weights[layer.router.weight]))
        rows, places = torch.arange(len(x)).repeat_interleave(layer.top), experts.reshape(-1)
        shares = shares.reshape(-1)
        kept = torch.ones_like(shares)
        scores = None
        if capacity is not None:
            # index_select, whose gradient is added in one order: the same seed, the same routers.
            routers, biases = (one[number].index_select(0, places) for one in (self.router, self.bias))
            scores = torch.einsum("nkw,nw->nk", routers, seen.index_select(0, rows)) + biases
            if not torch.is_grad_enabled():
                self._scores.append(scores)
            self._expected.append((scores.softmax(dim=-1) @ self._widths).mean())
            if capacity:
                kept = (~dropped(scores.argmax(dim=-1), capacity, self._generator)).float()
        out = torch.zeros_like(x)
        for expert in places.unique().tolist():
            own = (places == expert).nonzero()[:, 0]
            made = self._expert(layer.experts[expert], x[rows[own]], None if scores is None else scores[own])
            out = out.index_add(0, rows[own], made * (shares[own] * kept[own])[:, None])
        if layer.shared is not None:
            more = self._plain(layer.shared, x, self.weights)
            if layer.shared_gate is not None:
                more = more * functional.linear(x, self.weights[layer.shared_gate.weight]).sigmoid()
            out = out + more
        return out.reshape(shape)

    def _expert(self, expert: FeedForward, x: Tensor, scores: Tensor | None) -> Tensor:
        """What the full expert makes of x [n, width], or, with the bit router's scores [n, levels], what the
        likeliest level does."""
        if scores is None:
            return self._plain(expert, x, self.weights)
        chances = scores.softmax(dim=-1)
        hard = functional.one_hot(scores.argmax(dim=-1), len(self.bits)).to(chances.dtype)
        taken = hard + chances - chances.detach()
        total = torch.zeros_like(x)
        for level in range(len(self.bits)):
            own = {name: self.nested[name][level] for name in self._names(expert)}
            total = total + taken[:, level, None] * self._plain(expert, x, own)
        return total

    @staticmethod
    def _names(expert: FeedForward) -> list[str]:
        return [linear.weight for group in expert.products() for linear in group]

    @staticmethod
    def _plain(expert: FeedForward, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        up = functional.linear(x, weights[expert.up.weight])
        act = ACTIVATIONS[expert.activation]
        if expert.gate is None:
            inner = act(up)
        else:
            inner = act(functional.linear(x, weights[expert.gate.weight])) * up
        return functional.linear(inner, weights[expert.down.weight])
