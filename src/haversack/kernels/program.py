"""Kernel calls in a list that is made once and run by one call: see native/base/program.h.

Buffers are numbered; number 0 is what a run is given. Each operation has the bits of the kernel of its name,
which is its definition. There is no numpy twin: without the native module there are no programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haversack.core.errors import not_allowed
from haversack.kernels._matrix import Array, Matrix
from haversack.kernels._native import native
from haversack.kernels.gates import KINDS as GATES
from haversack.kernels.outliers import Outliers
from haversack.kernels.products import ACTIVATIONS, matrix_handle
from haversack.kernels.rotary import STYLES
from haversack.kernels.shadow import Shadow


def workspace(widths: Sequence[int]) -> Any:
    """Buffers f32 [n, width] for the programs of a model, touched when used; None without native kernels."""
    module = native()
    return None if module is None else module.Workspace(list(widths))


class Program:
    """Operations over the buffers of `space`, for caches of `kv_heads` heads of `head_width`.

    x, out, q, k, v are numbers of buffers. Raises ValueError for what does not fit.
    """

    __slots__ = ("_native", "run", "run_pooled")

    def __init__(self, space: Any, kv_heads: int, head_width: int) -> None:
        module = native()
        assert module is not None, "workspace() gave None"
        self._native = module.Program(space, kv_heads, head_width)
        self.run = self._native.run
        """run(hidden, layer, cos, sin, start, length, first, mask): hidden f32 [n, width of buffer 0] in
        place, the rest as in `rope_write` and `Visible`; False for what does not fit."""
        self.run_pooled = self._native.run_pooled
        """run_pooled(hidden, pool, cos, sin, runs, first): the same for rows in several caches, see
        kernels/pooled.py."""

    def norm(
        self, x: int, out: int, weight: Array, bias: Array | None, eps: float, offset: float, layer: bool
    ) -> None:
        """`rms_norm`, or `layer_norm`."""
        self._native.norm(x, out, weight, bias, eps, offset, layer)

    def products(
        self,
        x: int,
        matrices: Sequence[Matrix],
        outs: Sequence[int],
        biases: Sequence[Array | None],
        add: bool,
        activations: str,
        static_scale: float | None = None,
        static_zero: int = 0,
    ) -> None:
        """`matmul_many`, plus a bias f32 [rows] where there is one; if `add`, to what the buffers hold."""
        handles = [matrix_handle(matrix) for matrix in matrices]
        code = ACTIVATIONS.index(activations)
        self._native.products(
            x, handles, list(outs), list(biases), add, code, static_scale or 0.0, static_zero
        )

    def rope_write(
        self,
        q: int,
        k: int,
        v: int,
        q_norm: Array | None,
        k_norm: Array | None,
        eps: float,
        offset: float,
        style: str,
    ) -> None:
        """`rope_write`."""
        if style not in STYLES:
            raise not_allowed("style", style, STYLES)
        self._native.rope_write(q, k, v, q_norm, k_norm, eps, offset, style == "interleaved")

    def attention(self, q: int, out: int, scale: float, softcap: float | None) -> None:
        """`attention`."""
        self._native.attention(q, out, scale, softcap or 0.0)

    def gate(self, x: int, up: int | None, out: int, kind: str) -> None:
        """`gate`."""
        if kind not in GATES:
            raise not_allowed("kind", kind, GATES)
        self._native.gate(x, up or 0, out, GATES.index(kind))

    def outliers(self, x: int, outliers: Outliers, out: int) -> None:
        """`Outliers.add`."""
        self._native.outliers(x, outliers.handle, out)

    def shadow(self, x: int, shadow: Shadow, y: int, out: int, bias: Array | None, add: bool) -> None:
        """`Shadow.finish` of the product y of x; if `add`, to what `out` holds."""
        self._native.shadow(x, shadow.handle, y, out, bias, add)

    def gather(self, x: int, at: Array, out: int) -> None:
        """`gather`; `at` i32."""
        self._native.gather(x, at, out)

    def add(self, x: int, out: int) -> None:
        """out += x."""
        self._native.add(x, out)

    def copy(self, x: int, out: int) -> None:
        """out = x."""
        self._native.copy(x, out)
