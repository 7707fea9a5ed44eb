"""MMEdge's networks in PyTorch, to be trained: unit encoders, aggregation, fusion, predictor, gate.

Names of parameters are those of the stored tensors; `tensors` folds batch norms into the convolutions before
them, so that what runs on the device (unit_encoders.py, temporal_aggregation.py, fusion.py) has none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from haversack.models.streams._record import AUDIO_MODELS, HIDDEN, VIDEO_MODELS, WIDTH


class FrameEncoder(nn.Module):
    """Frames [n, side, side] of 0..1 -> features [n, WIDTH]."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.layers = VIDEO_MODELS[name]
        before = 1
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for channels, stride in self.layers:
            self.convs.append(nn.Conv2d(before, channels, 3, stride, 1, bias=False))
            self.norms.append(nn.BatchNorm2d(channels))
            before = channels
        self.head = nn.Linear(4 * before, WIDTH)

    def forward(self, frames: Tensor) -> Tensor:
        x = (frames[:, None] - 0.5) / 0.25
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.relu(norm(conv(x)))
        return self.head(functional.adaptive_avg_pool2d(x, 2).flatten(1))


class ChunkEncoder(nn.Module):
    """Chunks [n, samples] -> features [n, WIDTH]; each is scaled to mean 0 and deviation 1 first."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.layers = AUDIO_MODELS[name]
        before = 1
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for channels, kernel, stride in self.layers:
            self.convs.append(nn.Conv1d(before, channels, kernel, stride, kernel // 2, bias=False))
            self.norms.append(nn.BatchNorm1d(channels))
            before = channels
        self.head = nn.Linear(before, WIDTH)

    def forward(self, chunks: Tensor) -> Tensor:
        deviation = chunks.std(1, unbiased=False, keepdim=True)
        x = (chunks - chunks.mean(1, keepdim=True)) / torch.where(deviation == 0, 1.0, deviation)
        x = x[:, None]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.max_pool1d(functional.relu(norm(conv(x))), 2)
        return self.head(x.mean(2))


def shifted(x: Tensor) -> Tensor:
    """Temporal shift of [n, channels, steps] (temporal_shift.py has the definition)."""
    steps = x.shape[2]
    folds = list(x.chunk(4, 1))
    for at, by in enumerate((1, -1, 2, -2)):
        if abs(by) == 2 and steps <= 2:
            continue
        old = folds[at]
        if steps > 1:
            folds[at] = (
                torch.cat([old[:, :, :by], old[:, :, :-by]], 2)
                if by > 0
                else torch.cat([old[:, :, -by:], old[:, :, by:]], 2)
            )
    return torch.cat(folds, 1)


class VideoAggregator(nn.Module):
    """Features [n, steps, WIDTH] -> [n, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        for part in ("one", "two"):
            for dilation in (1, 2):
                depth = nn.Conv1d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation, groups=WIDTH)
                setattr(self, f"{part}_depth{dilation}", depth)
                setattr(self, f"{part}_point{dilation}", nn.Linear(WIDTH, WIDTH))
        self.squeeze = nn.Linear(WIDTH, max(2, WIDTH // 16))
        self.excite = nn.Linear(max(2, WIDTH // 16), WIDTH)
        self.attend1, self.attend2 = nn.Linear(WIDTH, WIDTH // 4), nn.Linear(WIDTH // 4, 1)
        self.motion = nn.Linear(WIDTH, WIDTH)
        self.forward1, self.forward2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        x = shifted(features.transpose(1, 2))
        for part in ("one", "two"):
            paths = [
                getattr(self, f"{part}_point{d}")(getattr(self, f"{part}_depth{d}")(x).transpose(1, 2))
                for d in (1, 2)
            ]
            x = functional.relu(paths[0] + paths[1] + x.transpose(1, 2)).transpose(1, 2)
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(x.mean(2)))))
        x = (x * gate[:, :, None]).transpose(1, 2)
        weights = self.attend2(functional.relu(self.attend1(x))).softmax(1)
        pooled = (x * weights).sum(1)
        steps = x.shape[1]
        if steps > 2:
            moved = (x[:, 1:] - x[:, :-1]).mean(1) + (x[:, 2:] - x[:, :-2]).mean(1)
            pooled = pooled + torch.sigmoid(self.motion(pooled)) * moved
        hidden = functional.gelu(self.forward1(pooled), approximate="tanh")
        return pooled + self.forward2(hidden)


class AudioAggregator(nn.Module):
    """Features [n, steps, WIDTH] -> [n, WIDTH]: shift, two bidirectional LSTM layers, the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH // 2, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        x = shifted(features.transpose(1, 2)).transpose(1, 2)
        return self.out(self.lstm(x)[0][:, -1])


class PooledAggregator(nn.Module):
    """The mean over time: what the aggregation is measured against."""

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(1)


class PlainAggregator(nn.Module):
    """The paper's baseline module: one depthwise separable convolution and the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.point = nn.Linear(WIDTH, WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        x = self.depth(features.transpose(1, 2)).transpose(1, 2)
        return functional.relu(self.point(x)).mean(1)


class Fusion(nn.Module):
    """Features of the senses [n, senses, WIDTH] -> logits [n, classes]."""

    def __init__(self, senses: int, classes: int) -> None:
        super().__init__()
        for at in range(senses):
            for number, (a, b) in enumerate(((WIDTH, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)), 1):
                setattr(self, f"weigh{at}_{number}", nn.Linear(a, b))
            setattr(self, f"pass{at}_1", nn.Linear(WIDTH, HIDDEN))
            setattr(self, f"pass{at}_2", nn.Linear(HIDDEN, WIDTH))
        self.senses = senses
        self.attention = nn.MultiheadAttention(WIDTH, 8, dropout=0.1, batch_first=True)
        sizes = (WIDTH, HIDDEN, HIDDEN, WIDTH)
        for at in range(3):
            setattr(self, f"mix{at}", nn.Linear(sizes[at], sizes[at + 1]))
        middle = max(WIDTH // 4, 2 * classes)
        sizes = (WIDTH, middle, middle, classes)
        for at in range(3):
            setattr(self, f"classify{at}", nn.Linear(sizes[at], sizes[at + 1]))

    def forward(self, features: Tensor) -> Tensor:
        tokens = []
        for at in range(self.senses):
            x = features[:, at]
            hidden = functional.relu(getattr(self, f"weigh{at}_1")(x))
            hidden = functional.relu(getattr(self, f"weigh{at}_2")(hidden))
            scale = torch.sigmoid(getattr(self, f"weigh{at}_3")(hidden))
            gate = torch.sigmoid(
                getattr(self, f"pass{at}_2")(functional.relu(getattr(self, f"pass{at}_1")(x)))
            )
            tokens.append(scale * gate * x)
        stack = torch.stack(tokens, 1)
        x = self.attention(stack, stack, stack, need_weights=False)[0].mean(1)
        for name in ("mix", "classify"):
            for at in range(3):
                x = getattr(self, f"{name}{at}")(x)
                x = functional.relu(x) if at < 2 else x
        return x


class Predictor(nn.Module):
    """Evidence and a configuration [n, 6] -> (logits [n, classes], accuracy [n])."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 64), nn.Linear(64, 64)
        self.label, self.accuracy = nn.Linear(64, classes), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.dropout(functional.relu(self.one(x)), 0.3, self.training)
        x = functional.dropout(functional.relu(self.two(x)), 0.3, self.training)
        return self.label(x), torch.sigmoid(self.accuracy(x))[:, 0]


class Gate(nn.Module):
    """Full feature of the fast sense and partial one of the slow [n, 2 WIDTH] -> logit of stopping [n]."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH // 2)
        self.three = nn.Linear(WIDTH // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(functional.relu(self.one(x)), 0.3, self.training)
        x = functional.dropout(functional.relu(self.two(x)), 0.3, self.training)
        return self.three(x)[:, 0]


def tensors(module: nn.Module, prefix: str) -> dict[str, np.ndarray]:
    """What is stored of a module, by PREFIX.NAME, f32; batch norms are folded into their convolutions."""
    state = {name: value.detach().double().numpy() for name, value in module.state_dict().items()}
    if isinstance(module, FrameEncoder | ChunkEncoder):
        for at in range(len(module.layers)):
            norm = {part: state.pop(f"norms.{at}.{part}") for part in _NORM}
            state.pop(f"norms.{at}.num_batches_tracked")
            scale = norm["weight"] / np.sqrt(norm["running_var"] + 1e-5)
            kernel = state.pop(f"convs.{at}.weight")
            state[f"conv{at}.weight"] = kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1))
            state[f"conv{at}.bias"] = norm["bias"] - norm["running_mean"] * scale
    return {f"{prefix}.{name}": value.astype(np.float32) for name, value in state.items()}


_NORM: Sequence[str] = ("weight", "bias", "running_mean", "running_var")
