"""The reference: the encoder in numpy, as its definition reads, on padded batches with an additive mask.

It is written over a table of operations, so that the lazy backend records the same ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench.mlx_transformers_benchmark._backends import Batch, Checkpoint
from haversack.kernels.gates import activation_twin

F32 = npt.NDArray[np.float32]


def erf(x: F32) -> F32:
    """The error function to 5e-7 (Abramowitz and Stegun, 7.1.26), f32."""
    size = np.abs(x)
    t = 1 / (1 + np.float32(0.3275911) * size)
    sum_ = np.float32(1.061405429) * t
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        sum_ = (sum_ + np.float32(factor)) * t
    found: F32 = np.copysign(1 - sum_ * np.exp(-x * x), x)
    return found


class Operations:
    """The operations, computed at once."""

    def rows(self, table: F32, numbers: Any) -> Any:
        """Rows of a table."""
        return table[numbers]

    def add(self, first: Any, second: Any) -> Any:
        """A sum."""
        return first + second

    def linear(self, x: Any, weight: F32, bias: F32) -> Any:
        """x times the matrix [outputs, inputs], transposed, plus the bias."""
        return x @ weight.T + bias

    def norm(self, x: Any, weight: F32, bias: F32, eps: float) -> Any:
        """Layer norm over the last axis."""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        return centred / np.sqrt(variance + np.float32(eps)) * weight + bias

    def activation(self, x: Any, kind: str) -> Any:
        """The feed-forward layer's activation."""
        if kind == "gelu":
            return np.float32(0.5) * x * (1 + erf(x * np.float32(0.5**0.5)))
        return activation_twin(x, kind).astype(np.float32)

    def attention(self, query: Any, key: Any, value: Any, mask: F32, heads: int) -> Any:
        """Softmax attention of every token to all, the mask [texts, 1, 1, n] added to the scores."""

        def split(x: F32) -> F32:
            return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

        q, k, v = split(query), split(key), split(value)
        scores = q @ k.transpose(0, 1, 3, 2) * np.float32(q.shape[-1] ** -0.5) + mask
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        seen = scores / scores.sum(axis=-1, keepdims=True) @ v
        return seen.transpose(0, 2, 1, 3).reshape(query.shape)


def encode(operations: Operations, checkpoint: Checkpoint, batch: Batch) -> Any:
    """Last hidden states [texts, n, width], by `operations`."""
    one, tensors = checkpoint.architecture, checkpoint.tensors
    do = operations
    mask = ((1 - batch.mask) * np.finfo(np.float32).min).astype(np.float32)[:, None, None, :]

    def linear(x: Any, layer: Any) -> Any:
        return do.linear(x, tensors[layer.weight], tensors[layer.bias])

    def norm(x: Any, layer: Any) -> Any:
        return do.norm(x, tensors[layer.weight], tensors[layer.bias], layer.eps)

    hidden = do.add(do.rows(tensors[one.embedding], batch.ids), do.rows(tensors[one.types], batch.types))
    hidden = do.add(hidden, do.rows(tensors[one.positions], batch.positions))
    hidden = norm(hidden, one.embedding_norm)
    for block in one.blocks:
        attention, feed = (branch.layer for branch in block.branches)
        query, key, value = (
            linear(hidden, layer)
            for layer in (attention.query, attention.key, attention.value)  # type: ignore[union-attr]
        )
        seen = do.attention(query, key, value, mask, attention.heads)  # type: ignore[union-attr]
        first, second = (branch.after_norm for branch in block.branches)
        hidden = norm(do.add(hidden, linear(seen, attention.output)), first)  # type: ignore[union-attr]
        inner = do.activation(linear(hidden, feed.up), feed.activation)  # type: ignore[union-attr]
        hidden = norm(do.add(hidden, linear(inner, feed.down)), second)  # type: ignore[union-attr]
    return hidden


class Numpy:
    """The backend."""

    name = "numpy"
    exact = True

    def unavailable(self) -> str | None:
        """Never."""
        return None

    def load(self, checkpoint: Checkpoint, threads: int) -> NumpyModel:
        """Nothing to prepare; numpy's threads are those of its BLAS, set by the environment."""
        return NumpyModel(checkpoint)


class NumpyModel:
    """The checkpoint, run by numpy."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def run(self, batch: Batch) -> Any:
        """See Loaded."""
        return encode(Operations(), self.checkpoint, batch)

    def finish(self, result: Any) -> None:
        """It is computed already."""

    def array(self, result: Any) -> F32:
        """See Loaded."""
        return np.asarray(result, np.float32)
