"""Training a predictor of the rows of an output matrix that matter (run/_head_predictor.py).

Paper: SmallThinker's released engine has one; how it was trained is not published [inferred]: binary cross
entropy on whether a row is among the `top` largest true logits, positives weighted up to balance. It
starts from the singular vectors of the output matrix, which is what a linear predictor of logits would be.
`limit` is set on text that it was not trained on, as high as leaves `recall` of the likeliest tokens above
it, with the matrices as they are stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from haversack.kernels import Matrix, pack_int4
from haversack.run._head_predictor import GROUP, HeadPredictor
from haversack.shrink._rounding import F32
from haversack.shrink.precision.q4_0 import round_blocks

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Training:
    """How a predictor is trained: `top` true logits are positives (0: one row in 160, 8 to 64), in `steps` of
    `batch` hidden states; `recall` sets the limit on the share `held_out` of the text."""

    top: int = 0
    steps: int = 300
    batch: int = 128
    rate: float = 3e-3
    weight: float = 8.0
    recall: float = 0.999
    held_out: float = 0.2


def packed(weight: F32) -> Matrix:
    """A matrix f32 [rows, columns] as the predictor's file holds it."""
    return pack_int4(*round_blocks(weight), GROUP)


def trained(
    model: str, states: F32, output: F32, rank: int, seed: int = 0, how: Training | None = None
) -> HeadPredictor:
    """A predictor of `rank` for the output matrix f32 [vocabulary, width], trained on hidden `states` f32
    [tokens, width], which a shuffle by `seed` splits.
    """
    how = how or Training()
    order = np.random.default_rng(seed).permutation(len(states))
    later = max(1, int(how.held_out * len(states)))
    seen, kept = states[np.sort(order[later:])], states[np.sort(order[:later])]
    head = torch.from_numpy(output)
    x = torch.from_numpy(np.ascontiguousarray(seen))
    scale = (x * x).mean(0).sqrt().clamp_min(1e-6)
    left, sizes, right = torch.linalg.svd(head * scale, full_matrices=False)
    down = torch.zeros(rank, head.shape[1])
    up = torch.zeros(len(head), rank)
    own = min(rank, len(sizes))
    down[:own] = right[:own] / scale
    up[:, :own] = left[:, :own] * sizes[:own]
    spread = float((x[:512] @ down.T @ up.T).std()) or 1.0
    up /= spread
    shift = torch.zeros(1)
    for one in (down, up, shift):
        one.requires_grad_(True)
    optimizer = torch.optim.Adam([down, up, shift], lr=how.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.rate, total_steps=how.steps)
    generator = torch.Generator().manual_seed(seed)
    top = min(how.top or min(64, max(8, len(head) // 160)), len(head) - 1)
    weight = torch.tensor(how.weight)
    for _ in range(how.steps):
        rows = x[torch.randint(len(x), (how.batch,), generator=generator)]
        with torch.no_grad():
            true = rows @ head.T
            wanted = torch.zeros_like(true).scatter_(1, true.topk(top, dim=1).indices, 1.0)
        given = rows @ down.T @ up.T + shift
        loss = functional.binary_cross_entropy_with_logits(given, wanted, pos_weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    first, second = (packed(one.detach().numpy().astype(np.float32)) for one in (down, up))
    limit = limit_of(HeadPredictor(model, first, second, 0.0, 0.0), kept, output, how.recall)
    return HeadPredictor(model, first, second, limit, how.recall)


def limit_of(predictor: HeadPredictor, states: F32, output: F32, recall: float) -> float:
    """The score that `recall` of the likeliest tokens of `states` f32 [tokens, width] are above."""
    found = []
    for start in range(0, len(states), 256):
        part = np.ascontiguousarray(states[start : start + 256])
        likeliest = (part @ output.T).argmax(axis=1)
        found.append(predictor.scores(part)[np.arange(len(part)), likeliest])
    scores = np.sort(np.concatenate(found))
    return float(np.nextafter(scores[int((1 - recall) * len(scores))], np.float32(-np.inf)))
