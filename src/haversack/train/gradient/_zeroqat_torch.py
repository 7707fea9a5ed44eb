"""ZeroQAT's rounding in PyTorch: the warm start, one block at a time, and true gradients to compare with.

Paper: ZeroQAT (arXiv 2509.00031, 2025), its first phase, which is OmniQuant's (2024); see zeroqat.py.
Grids are those of _zeroqat_grid.py; on the way back rounding has the gradient 1, clipping the gradient 0.
The warm start fits s, d, a and b of a block so that, given what the rounded blocks before give, it gives what
the float block would: mean squared error, Adam, a few passes over the calibration text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from haversack.models._architecture import Block
from haversack.models._blocks_torch import Hooks, Point, block_forward, embed, logits_of
from haversack.train.gradient._zeroqat_decoder import F32, Bits, RoundedDecoder, Rows, floats
from haversack.train.gradient._zeroqat_grid import OFF, STEP_LIMITS, fresh_clip, group_of
from haversack.train.gradient._zeroqat_smoothing import SMALLEST, Place, merged, moved

SCALE_RATE, CLIP_RATE = 5e-3, 1e-2


class _Rounded(torch.autograd.Function):
    """The nearest integers; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def _steps(x: Tensor, low: Tensor, high: Tensor, bits: int, half: bool) -> Tensor:
    """`x` on the grid of `bits` over `low` to `high`."""
    top = (1 << bits) - 1
    scale = ((high - low) / top).clamp(*STEP_LIMITS)
    if half:
        scale = scale + (scale.half().float() - scale).detach()
    zero = (-low / scale).round().detach()
    codes = _Rounded.apply(x / scale) + zero  # type: ignore[no-untyped-call]
    found: Tensor = (codes.clamp(0, top) - zero) * scale
    return found


def fake_weight(weight: Tensor, bits: int, group: int | None, clip: Tensor) -> Tensor:
    """`weight` [rows, columns] as it reads back after being stored; `clip` [2, rows, groups]."""
    if bits >= OFF:
        return weight
    wide = weight.reshape(len(weight), -1, group_of(weight.shape[1], group))
    low, high = wide.amin(-1, keepdim=True).clamp_max(0), wide.amax(-1, keepdim=True).clamp_min(0)
    shares = clip.sigmoid()[..., None]
    return _steps(wide, low * shares[1], high * shares[0], bits, half=True).reshape(weight.shape)


def fake_inputs(x: Tensor, bits: int) -> Tensor:
    """x [..., columns] with each row on its own grid."""
    if bits >= OFF:
        return x
    return _steps(x, x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), bits, half=False)


class Rounding(Hooks):
    """Rounds the matrices that have a clip, and the inputs of all `matrices`."""

    def __init__(self, matrices: set[str], clips: Mapping[str, Tensor], bits: Bits) -> None:
        self.matrices, self.clips, self.bits = matrices, clips, bits
        self._last: tuple[Tensor, Tensor] | None = None

    def weight(self, name: str, tensor: Tensor) -> Tensor:
        clip = self.clips.get(name)
        return tensor if clip is None else fake_weight(tensor, self.bits.weights, self.bits.group, clip)

    def activation(self, point: Point, tensor: Tensor) -> Tensor:
        if point.place != "input" or point.name not in self.matrices:
            return tensor
        if self._last is None or self._last[0] is not tensor:
            self._last = (tensor, fake_inputs(tensor, self.bits.inputs))
        return self._last[1]


@dataclass
class WarmStart:
    """What a block starts with: (s, d) of its places and clips of its matrices; `errors` of its output, over
    the mean square of what it should be, before and after learning."""

    places: dict[Place, tuple[F32, F32 | None]]
    clips: dict[str, F32]
    errors: tuple[float, float]


def warm_start(
    block: Block,
    tensors: Mapping[str, F32],
    places: Mapping[Place, tuple[F32, F32 | None]],
    bits: Bits,
    inputs: Sequence[F32],
    targets: Sequence[F32],
    *,
    epochs: int,
    batch: int,
    seed: int,
) -> WarmStart:
    """Fit the block: `inputs` [n, width] of each text are what the rounded blocks before give, `targets` what
    the float block makes of the float ones' output."""
    weights = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}
    matrices = {linear.weight for linear in block.matrices()}
    clips = {
        name: torch.tensor(
            fresh_clip(weights[name].shape[0], weights[name].shape[1], bits.group), requires_grad=True
        )
        for name in matrices
    }
    scales = {place: torch.tensor(s).log().requires_grad_(place.learns) for place, (s, _) in places.items()}
    shifts = {place: torch.tensor(d).requires_grad_() for place, (_, d) in places.items() if d is not None}
    learned = [*(each for each in scales.values() if each.requires_grad), *shifts.values()]
    hooks = Rounding(matrices, clips, bits)
    size = float(np.mean([np.square(each, dtype=np.float64).mean() for each in targets])) or 1.0

    def smoothed() -> dict[str, Tensor]:
        return merged({place: (s.exp(), shifts.get(place)) for place, s in scales.items()}, weights)

    def error(texts: Sequence[int]) -> Tensor:
        hidden = torch.from_numpy(np.stack([inputs[i] for i in texts]))
        wanted = torch.from_numpy(np.stack([targets[i] for i in texts]))
        return (block_forward(block, hidden, smoothed(), hooks) - wanted).square().mean() / size

    @torch.no_grad()
    def whole() -> float:
        parts = [range(at, min(at + batch, len(inputs))) for at in range(0, len(inputs), batch)]
        return sum(float(error(part)) * len(part) for part in parts) / len(inputs)

    groups: list[dict[str, Any]] = [{"params": [*clips.values()], "lr": CLIP_RATE}]
    if learned:
        groups.append({"params": learned, "lr": SCALE_RATE})
    optimizer = torch.optim.Adam(groups)
    drawn = np.random.default_rng([seed, block.index])
    everything = [*clips.values(), *learned]
    first = least = whole()
    best = [each.detach().clone() for each in everything]
    for _ in range(epochs):
        order = drawn.permutation(len(inputs))
        for at in range(0, len(order), batch):
            optimizer.zero_grad(set_to_none=True)
            loss = error(order[at : at + batch].tolist())
            if not math.isfinite(float(loss.detach())):
                break
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        now = whole()
        if math.isfinite(now) and now < least:
            least, best = now, [each.detach().clone() for each in everything]
    with torch.no_grad():
        for each, kept in zip(everything, best, strict=True):
            each.copy_(kept)
    found = {
        place: (
            s.detach().exp().clamp_min(SMALLEST).numpy(),
            None if place not in shifts else shifts[place].detach().numpy(),
        )
        for place, s in scales.items()
    }
    return WarmStart(found, {name: clip.detach().numpy() for name, clip in clips.items()}, (first, least))


class TrueGradient:
    """The loss of a RoundedDecoder as PyTorch has it, with gradients by the way back: rounding's is 1.

    `tensors` are its masters (and factors and clips, where `quantities`), the same numbers.
    """

    def __init__(self, decoder: RoundedDecoder, *, learns: Sequence[str] | None = None) -> None:
        model, self.decoder = decoder.model, decoder
        names = [name for name in model.architecture.tensors() if name not in decoder.masters]
        self.fixed = {name: torch.from_numpy(floats(model, name)) for name in names}
        chosen = set(decoder.masters if learns is None else learns)
        self.learned = {
            name: torch.tensor(values, requires_grad=name in chosen)
            for name, values in decoder.masters.items()
        }
        self.factors = {name: torch.tensor(values) for name, values in decoder.factors.items()}
        clips = {name: torch.tensor(values) for name, values in decoder.clips.items()}
        matrices = {linear.weight for block in model.architecture.blocks for linear in block.matrices()}
        self.hooks = Rounding(matrices, clips, decoder.bits)

    def loss(self, rows: Rows) -> Tensor:
        """Mean cross-entropy in nats of the tokens that count; texts of one length together."""
        architecture = self.decoder.architecture
        weights = {**self.fixed, **self.learned}
        for block, places in self.decoder.places.items():
            del block
            for place in places:
                weights.update(moved(place, weights, self.factors[place.producer].exp()))
        if rows.of is not None:
            raise ValueError("true gradients are of texts, not of options")
        total, count = torch.zeros(()), 0
        by_length: dict[int, list[int]] = {}
        for index, tokens in enumerate(rows.tokens):
            by_length.setdefault(len(tokens), []).append(index)
        for indices in by_length.values():
            stacked = torch.from_numpy(np.stack([rows.tokens[i] for i in indices]).astype(np.int64))
            hidden = embed(architecture, stacked, weights)
            for record in architecture.blocks:
                hidden = block_forward(record, hidden, weights, self.hooks)
            chosen = torch.cat([hidden[k, rows.places[i]] for k, i in enumerate(indices)])
            targets = np.concatenate([rows.targets[i] for i in indices]).astype(np.int64)
            logits = logits_of(architecture, chosen, weights)
            total = total + torch.nn.functional.cross_entropy(
                logits, torch.from_numpy(targets), reduction="sum"
            )
            count += len(targets)
        return total / count

    def gradients(self, rows: Rows) -> dict[str, F32]:
        """The gradient of each master, f32."""
        for each in self.learned.values():
            each.grad = None
        self.loss(rows).backward()  # type: ignore[no-untyped-call]
        return {
            name: np.zeros(each.shape, np.float32) if each.grad is None else each.grad.numpy()
            for name, each in self.learned.items()
            if each.requires_grad
        }
