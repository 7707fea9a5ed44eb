"""Losses over a large vocabulary in pieces of positions, so that all logits never exist at once.

Gradients are computed on the way forward: for the hidden states always, for the output matrix where it
learns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from haversack.train._training import HEAD_ROWS


def divergence(
    hidden: Tensor,
    head: Tensor,
    wanted: Tensor,
    wanted_head: Tensor,
    *,
    temperature: float = 1.0,
    compute: torch.dtype = torch.float32,
) -> Tensor:
    """Mean over positions of KL(p || q) in nats: p the softmax of `wanted` [n, width] x `wanted_head`
    [vocabulary, width] over `temperature`, q that of `hidden` x `head`."""
    found: Tensor = _Divergence.apply(hidden, head, wanted, wanted_head, temperature, compute)
    return found


def next_token(
    hidden: Tensor, head: Tensor, targets: Tensor, *, compute: torch.dtype = torch.float32
) -> Tensor:
    """Mean over positions of -log q(target) in nats, `targets` i64 [n]."""
    found: Tensor = _NextToken.apply(hidden, head, targets, compute)
    return found


class _Pieces(torch.autograd.Function):
    """What both share: the way back hands out gradients that were made on the way forward."""

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        hidden, head = context.saved_tensors
        return gradient * hidden, None if head is None else gradient * head, *[None] * context.others


class _Divergence(_Pieces):
    @staticmethod
    def forward(
        context: Any,
        hidden: Tensor,
        head: Tensor,
        wanted: Tensor,
        wanted_head: Tensor,
        temperature: float,
        compute: torch.dtype,
    ) -> Tensor:
        context.others = 4

        def of_piece(start: int, logits: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
            theirs = wanted[start : start + len(logits)].to(compute) @ wanted_head.to(compute).T
            p = (theirs.float() / temperature).log_softmax(-1)
            entropy = -torch.dot(p.exp().flatten(), p.flatten())
            p = p.exp_()
            return p, normal.sum() - torch.dot(p.flatten(), logits.flatten()) - entropy

        return _over_pieces(context, hidden, head, compute, of_piece)


class _NextToken(_Pieces):
    @staticmethod
    def forward(context: Any, hidden: Tensor, head: Tensor, targets: Tensor, compute: torch.dtype) -> Tensor:
        context.others = 2

        def of_piece(start: int, logits: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
            at = targets[start : start + len(logits), None]
            p = torch.zeros_like(logits).scatter_(1, at, 1.0)
            return p, (normal - logits.gather(1, at)).sum()

        return _over_pieces(context, hidden, head, compute, of_piece)


def _over_pieces(context: Any, hidden: Tensor, head: Tensor, compute: torch.dtype, of_piece: Any) -> Tensor:
    """The mean loss; `of_piece` gives the wanted shares [rows, vocabulary] and the summed loss of a piece."""
    count, narrow = len(hidden), head.to(compute)
    learns = bool(head.requires_grad)
    total = torch.zeros((), device=hidden.device)
    to_hidden = torch.empty_like(hidden)
    to_head = torch.zeros_like(head) if learns else None
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, count, HEAD_ROWS):
            piece = hidden[start : start + HEAD_ROWS].to(compute)
            logits = (piece @ narrow.T).float()
            normal = logits.logsumexp(-1, keepdim=True)
            p, loss = of_piece(start, logits, normal)
            total += loss
            difference = logits.sub_(normal).exp_().sub_(p).div_(count).to(compute)
            to_hidden[start : start + HEAD_ROWS] = difference @ narrow
            if to_head is not None:
                to_head += difference.T @ piece
    context.save_for_backward(to_hidden, to_head)
    return total / count
