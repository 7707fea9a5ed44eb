"""Encoders of one unit: a frame of a camera, a chunk of a microphone.

Paper: MMEdge (arXiv 2510.25327). A unit is encoded as soon as it is there, alone, so its features need
nothing of its neighbours. Frames: convolutions of kernel 3, ReLU, the mean over quarters of the picture, a
linear layer (in the paper a ResNet without its head). Chunks: scaled to mean 0 and deviation 1 (a deviation
of 0 counts as 1), convolutions, ReLU and a maximum over two each, the mean, a linear layer. Batch norms are
folded into the convolutions, so a batch of one has the values of any other.

All arrays are f32; several units at once give each unit's own features, to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

SYSTEM = 6

F32 = NDArray[np.float32]
Tensors = Mapping[str, F32]


def conv2d(x: F32, kernel: F32, bias: F32, stride: int) -> F32:
    """Maps [n, in, side, side] by [out, in, 3, 3] over a border of zeros -> [n, out, side', side']."""
    count, _, height, width = x.shape
    padded = np.zeros((count, x.shape[1], height + 2, width + 2), np.float32)
    padded[:, :, 1:-1, 1:-1] = x
    seen = sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::stride, ::stride]
    _, _, rows, columns = seen.shape[:4]
    patches = seen.transpose(0, 2, 3, 1, 4, 5).reshape(count * rows * columns, -1)
    made = patches @ kernel.reshape(len(kernel), -1).T + bias
    return np.ascontiguousarray(made.reshape(count, rows, columns, -1).transpose(0, 3, 1, 2))


def conv1d(x: F32, kernel: F32, bias: F32, stride: int) -> F32:
    """Signals [n, in, steps] by [out, in, k], k odd, over borders of zeros -> [n, out, steps']."""
    count, channels, steps = x.shape
    width = kernel.shape[2]
    padded = np.zeros((count, channels, steps + width - 1), np.float32)
    padded[:, :, width // 2 : width // 2 + steps] = x
    seen = sliding_window_view(padded, width, 2)[:, :, ::stride]
    patches = seen.transpose(0, 2, 1, 3).reshape(count * seen.shape[2], -1)
    made = patches @ kernel.reshape(len(kernel), -1).T + bias
    return np.ascontiguousarray(made.reshape(count, seen.shape[2], -1).transpose(0, 2, 1))


def halved(x: F32) -> F32:
    """The maximum of each two steps of [n, channels, steps]; an odd last step is left out."""
    steps = x.shape[2] // 2 * 2
    return np.asarray(np.maximum(x[:, :, 0:steps:2], x[:, :, 1:steps:2]))


def scaled_chunks(chunks: F32) -> F32:
    """Chunks [n, samples] at mean 0 and deviation 1."""
    deviation = chunks.std(1, keepdims=True)
    deviation[deviation == 0] = 1
    return np.asarray((chunks - chunks.mean(1, keepdims=True)) / deviation, np.float32)


def encode_frames(frames: NDArray[np.uint8], tensors: Tensors, prefix: str, strides: Sequence[int]) -> F32:
    """Features [n, width] of frames u8 [n, side, side] by the encoder whose tensors begin with `prefix`."""
    x = (frames[:, None].astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    for at, stride in enumerate(strides):
        x = conv2d(x, tensors[f"{prefix}.conv{at}.weight"], tensors[f"{prefix}.conv{at}.bias"], stride)
        np.maximum(x, 0, out=x)
    count, channels, side, _ = x.shape
    quarters = x.reshape(count, channels, 2, side // 2, 2, side // 2).mean((3, 5)).reshape(count, -1)
    return np.asarray(quarters @ tensors[f"{prefix}.head.weight"].T + tensors[f"{prefix}.head.bias"])


def encode_chunks(chunks: F32, tensors: Tensors, prefix: str, strides: Sequence[int]) -> F32:
    """Features [n, width] of chunks [n, samples]."""
    x = scaled_chunks(chunks)[:, None]
    for at, stride in enumerate(strides):
        x = conv1d(x, tensors[f"{prefix}.conv{at}.weight"], tensors[f"{prefix}.conv{at}.bias"], stride)
        x = halved(np.maximum(x, 0))
    return np.asarray(x.mean(2) @ tensors[f"{prefix}.head.weight"].T + tensors[f"{prefix}.head.bias"])
