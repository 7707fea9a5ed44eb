"""Random weights of TinyLlama-1.1B's shape, the same numbers for both sides of a comparison.

Standard library and numpy only: this file is read by the package and, by path, by workers that run in a
peer's own environment. Numbers come from a bit generator's raw stream, which numpy keeps the same between
versions.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

GROUP = 32


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama: width, inner width of the gates, layers, heads, key/value heads, vocabulary."""

    width: int = 2048
    inner: int = 5632
    layers: int = 22
    heads: int = 32
    kv_heads: int = 4
    vocabulary: int = 32000
    context: int = 2048
    rope_theta: float = 10000.0
    eps: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def matrices(self) -> Iterator[tuple[str, int, int]]:
        """Name (as in a hub folder), outputs and inputs of every 4-bit matrix, in order of first use."""
        kv = self.kv_heads * self.head_width
        yield "model.embed_tokens.weight", self.vocabulary, self.width
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            yield f"{at}.self_attn.q_proj.weight", self.width, self.width
            yield f"{at}.self_attn.k_proj.weight", kv, self.width
            yield f"{at}.self_attn.v_proj.weight", kv, self.width
            yield f"{at}.self_attn.o_proj.weight", self.width, self.width
            yield f"{at}.mlp.gate_proj.weight", self.inner, self.width
            yield f"{at}.mlp.up_proj.weight", self.inner, self.width
            yield f"{at}.mlp.down_proj.weight", self.width, self.inner

    def norms(self) -> Iterator[str]:
        """Names of the norm weights (all ones plus a little noise)."""
        for layer in range(self.layers):
            yield f"model.layers.{layer}.input_layernorm.weight"
            yield f"model.layers.{layer}.post_attention_layernorm.weight"
        yield "model.norm.weight"


def _raw(name: str, count: int) -> np.ndarray:
    """`count` random bytes that depend on the name alone."""
    stream = np.random.PCG64(zlib.crc32(name.encode()))
    return stream.random_raw((count + 7) // 8).view(np.uint8)[:count]


def int4_matrix(name: str, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Values int8[rows, columns] in -7..7 with mean zero, scales f16[rows, columns / 32]."""
    packed = _raw(name, rows * columns // 2)
    values = np.empty((rows, columns), np.int8)
    flat = values.reshape(-1)
    flat[0::2] = (packed & 15).astype(np.int8) - 8
    flat[1::2] = (packed >> 4).astype(np.int8) - 8
    flat[flat == -8] = 0
    spread = 0.75 + _raw(name + " scales", rows * columns // GROUP).reshape(rows, -1) / 512.0
    return values, (spread / (4.3 * np.sqrt(columns))).astype(np.float16)


def output_matrix(shape: Shape) -> np.ndarray:
    """The f32[vocabulary, width] output matrix before each side stores it in at least six bits."""
    raw = _raw("lm_head.weight", shape.vocabulary * shape.width)
    return (raw.reshape(shape.vocabulary, shape.width).astype(np.float32) - 127.5) / (
        74 * np.sqrt(shape.width)
    )


def norm_weight(name: str, shape: Shape) -> np.ndarray:
    """f32[width], one plus or minus at most 0.25."""
    return (1 + (_raw(name, shape.width).astype(np.float32) - 127.5) / 512).astype(np.float32)


def token_ids(count: int, shape: Shape, start: int = 0) -> list[int]:
    """`count` token ids that depend on their place alone."""
    raw = _raw("tokens", 2 * (start + count)).view(np.uint16)[start:]
    return [int(value) % shape.vocabulary for value in raw]
