"""Shadow: a matrix in int8 with one scale, one grid for its inputs, and what lies outside of that in floats.

shrink/precision/mllm_npu.py profiles the grids. Here is: `codes`, the matrix in int8, the same scale in every
row; `hot` u8 [count, rows] (codes + 128) and `hot_channels` i32 [count], rising, the inputs that most often
pass their grid, apart so that they are read in one run. `scale` of the inputs and `out_scale` of the outputs
(0.0: these stay floats) stand in pack.json, each with its mode: clip, or shadow, where what passes the grid
is added in floats. `kept` false: the shadow was judged to matter little, and is left out unless a run asks
for it. With int8-static activations this is so; with f32 or int8-dynamic ones the codes are multiplied like
any other matrix.
Cost: where a shadow is kept, a look at every input, and a row of weights for each that passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, not_allowed
from haversack.kernels import Matrix, Shadow, matmul, unpack
from haversack.run._forms import F32, Entry, Part, whole

STATIC = "int8-static"
MODES = ("clip", "shadow")
CHOICES = ("all", "pruned", "none")
"""What of the shadows a run executes: all, those that are kept, or none."""


def parts(entry: Entry) -> Mapping[str, Part]:
    """See Form; the fields are `scale`, `out_scale`, `inputs`, `outputs`, `kept` and `hot`."""
    rows, columns = entry["shape"]
    positive(entry, "scale")
    if entry.get("out_scale") != 0.0:
        positive(entry, "out_scale")
    for field in ("inputs", "outputs"):
        if entry.get(field) not in MODES:
            raise ValueError(f"{field} is {str(entry.get(field))[:40]}, not clip or shadow")
    if not isinstance(entry.get("kept"), bool):
        raise ValueError(f"kept is {str(entry.get('kept'))[:40]}, not true or false")
    found = {"codes": Part((rows, columns), ("int8",))}
    hot = whole(entry, "hot", 0, columns)
    if hot:
        found |= {"hot": Part((hot, rows), ("u8",)), "hot_channels": Part((hot,), ("i32",))}
    return found


def positive(entry: Entry, field: str) -> None:
    """Raises ValueError unless `field` of `entry` can be a scale."""
    value = entry.get(field)
    if not isinstance(value, float) or not math.isfinite(value) or not 1e-30 <= value < 1e30:
        raise ValueError(f"{field} is {str(value)[:40]}, not a positive number")


def bind(entry: Entry, parts: Mapping[str, Any]) -> ShadowMatrix:
    """See Form. Raises DamagedFileError for hot channels that do not rise inside the matrix."""
    columns = int(entry["shape"][1])
    hot, at = parts.get("hot"), parts.get("hot_channels")
    if hot is not None and at is not None:
        if (np.diff(at) <= 0).any() or not 0 <= int(at[0]) <= int(at[-1]) < columns:
            said = f"hot channels must rise from 0 to {columns - 1}"
            raise DamagedFileError("the pack", said, field="forms")
        hot = (hot.astype(np.int16) - 128).astype(np.int8)
    return ShadowMatrix(parts["codes"], entry, hot, at)


class ShadowMatrix:
    """The matrix `codes` [rows, columns], with the grids and modes of `entry`."""

    __slots__ = (
        "codes",
        "columns",
        "entry",
        "hot",
        "hot_channels",
        "kind",
        "nbytes",
        "rows",
        "scale",
        "shadow",
    )

    def __init__(
        self,
        codes: Matrix,
        entry: Entry,
        hot: NDArray[np.int8] | None,
        hot_channels: NDArray[np.int32] | None,
        choice: str = "pruned",
    ) -> None:
        self.codes, self.entry, self.hot, self.hot_channels = codes, entry, hot, hot_channels
        self.rows, self.columns, self.kind = codes.rows, codes.columns, codes.kind
        self.nbytes = codes.nbytes + (0 if hot is None else 2 * hot.nbytes)
        self.scale = float(entry["scale"])
        acts = choice == "all" or (choice == "pruned" and entry["kept"])
        self.shadow = Shadow(
            codes,
            self.scale,
            inputs=acts and entry["inputs"] == "shadow",
            outputs=acts and entry["outputs"] == "shadow",
            out_scale=float(entry["out_scale"]) or None,
            hot=hot,
            channels=hot_channels,
        )

    def executing(self, choice: str) -> ShadowMatrix:
        """The same matrix with another `choice` of CHOICES of what runs in floats."""
        if choice not in CHOICES:
            raise not_allowed("shadow", choice, CHOICES)
        return ShadowMatrix(self.codes, self.entry, self.hot, self.hot_channels, choice)

    @property
    def in_floats(self) -> bool:
        """True when part of a product is left to a processor that knows floats."""
        return bool(self.shadow.inputs or self.shadow.outputs)

    def integers(self, x: F32, out: F32) -> None:
        """out f32 [n, rows] = the product of the rounded, clipped inputs: what an integer processor makes."""
        matmul(x, self.codes, activations=STATIC, static_scale=self.scale, out=out)

    def multiply(self, x: F32, out: F32, *, activations: str, add: bool, bias: F32 | None) -> None:
        """See Bound."""
        to = out if add else None
        if activations != STATIC:
            matmul(x, self.codes, activations=activations, out=out, add=to, bias=bias)
        elif self.shadow.idle:
            matmul(x, self.codes, activations=STATIC, static_scale=self.scale, out=out, add=to, bias=bias)
        else:
            y = np.empty((len(x), self.rows), np.float32) if add else out
            self.integers(x, y)
            self.shadow.finish(x, y, out=out, add=to, bias=bias)

    def append(self, maker: Any, x: int, out: int, bias: F32 | None, add: bool) -> None:
        """See Bound: the product in a buffer of its own, then what it misses."""
        if maker.activations != STATIC:
            maker.product(x, self.codes, out, bias, add)
        elif self.shadow.idle:
            maker.program.products(x, [self.codes], [out], [bias], add, STATIC, self.scale)
        else:
            y = maker.buffer("integers", self.rows)
            maker.program.products(x, [self.codes], [y], [None], False, STATIC, self.scale)
            maker.program.shadow(x, self.shadow, y, out, bias, add)

    def dense(self) -> F32:
        """See Bound."""
        found: F32 = unpack(self.codes)
        return found
