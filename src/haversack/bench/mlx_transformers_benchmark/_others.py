"""JAX and MLX, where they are installed: the reference's operations over their arrays."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench.mlx_transformers_benchmark._backends import Batch, Checkpoint
from haversack.bench.mlx_transformers_benchmark._reference import Operations, encode

F32 = npt.NDArray[np.float32]


class ArrayOperations(Operations):
    """The operations over another library's arrays; `np_like` has numpy's names, `erf` its error function."""

    def __init__(self, np_like: Any, erf: Any) -> None:
        self.np = np_like
        self.erf = erf

    def norm(self, x: Any, weight: Any, bias: Any, eps: float) -> Any:
        """See Operations."""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        return centred / self.np.sqrt(variance + eps) * weight + bias

    def activation(self, x: Any, kind: str) -> Any:
        """See Operations."""
        if kind == "gelu":
            return 0.5 * x * (1 + self.erf(x * 0.5**0.5))
        if kind == "relu":
            return self.np.maximum(x, 0)
        if kind == "silu":
            return x / (1 + self.np.exp(-x))
        return 0.5 * x * (1 + self.np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x)))

    def attention(self, query: Any, key: Any, value: Any, mask: Any, heads: int) -> Any:
        """See Operations."""

        def split(x: Any) -> Any:
            return self.np.transpose(x.reshape(*x.shape[:2], heads, -1), (0, 2, 1, 3))

        q, k, v = split(query), split(key), split(value)
        scores = q @ self.np.transpose(k, (0, 1, 3, 2)) * float(q.shape[-1] ** -0.5) + mask
        scores = self.np.exp(scores - scores.max(axis=-1, keepdims=True))
        seen = scores / scores.sum(axis=-1, keepdims=True) @ v
        return self.np.transpose(seen, (0, 2, 1, 3)).reshape(query.shape)


class JaxModel:
    """The operations traced and compiled once for every shape."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        import jax

        operations = ArrayOperations(jax.numpy, jax.scipy.special.erf)
        self._jax = jax
        self._tensors = {name: jax.numpy.asarray(array) for name, array in checkpoint.tensors.items()}

        def forward(tensors: Any, ids: Any, mask: Any, types: Any, positions: Any) -> Any:
            moved = Checkpoint(checkpoint.folder, checkpoint.architecture, checkpoint.config, tensors)
            return encode(operations, moved, Batch(ids, mask, types, positions))

        self._forward = jax.jit(forward)

    def run(self, batch: Batch) -> Any:
        """Asynchronous: gives at once what `finish` waits for."""
        given = (value.astype(np.int32) for value in (batch.ids, batch.mask, batch.types, batch.positions))
        return self._forward(self._tensors, *given)

    def finish(self, result: Any) -> None:
        """See Loaded."""
        result.block_until_ready()

    def array(self, result: Any) -> F32:
        """See Loaded."""
        return np.asarray(result, np.float32)


class Jax:
    """JAX on the processor."""

    name = "jax"
    exact = True

    def unavailable(self) -> str | None:
        """See Backend."""
        return None if importlib.util.find_spec("jax") else "jax is not installed; run: pip install jax"

    def load(self, checkpoint: Checkpoint, threads: int) -> JaxModel:
        """JAX takes the processor's threads as it finds them."""
        return JaxModel(checkpoint)


class MlxModel:
    """MLX: lazy, so `finish` evaluates."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        import mlx.core as mx

        self._mx = mx
        self._operations = ArrayOperations(mx, mx.erf)
        tensors = {name: mx.array(array) for name, array in checkpoint.tensors.items()}
        self._checkpoint = Checkpoint(checkpoint.folder, checkpoint.architecture, checkpoint.config, tensors)

    def run(self, batch: Batch) -> Any:
        """See Loaded."""
        mx = self._mx
        moved = Batch(mx.array(batch.ids), batch.mask, mx.array(batch.types), mx.array(batch.positions))
        return encode(self._operations, self._checkpoint, moved)

    def finish(self, result: Any) -> None:
        """See Loaded."""
        self._mx.eval(result)

    def array(self, result: Any) -> F32:
        """See Loaded."""
        return np.asarray(result, np.float32)


class Mlx:
    """MLX, on a Mac's GPU or on Linux's processor."""

    name = "mlx"
    exact = True

    def unavailable(self) -> str | None:
        """See Backend."""
        try:
            import mlx.core  # noqa: F401
        except ImportError as error:
            return f"mlx does not load ({error}); run: pip install mlx (on Linux: mlx[cpu])"
        return None

    def load(self, checkpoint: Checkpoint, threads: int) -> MlxModel:
        """MLX takes the processor's threads as it finds them."""
        return MlxModel(checkpoint)
