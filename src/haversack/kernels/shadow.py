"""What static int8 products miss: inputs beyond their grid, and outputs beyond theirs.

`matmul` with int8-static activations counts an input x as clip(r) with r = round(x / scale). `Shadow.finish`
takes its product y and adds, for every input outside -128..127, (r - clip(r)) * scale * weight scale times
that input's weights, in the order of the inputs: sums of whole numbers, so exact below 2^24. Where outputs
are rounded to a grid of their own, they are clipped to it before that is added, or, with `outputs`, those
that reach an end of the grid are rounded anew, unclipped, from the whole sum. The bits of a row do not depend
on the call around it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from haversack.core.errors import UserError
from haversack.kernels._arguments import check_array, check_out, refuse_arrays
from haversack.kernels._matrix import Array, Matrix, unpack_integers
from haversack.kernels._native import native
from haversack.kernels.products import matrix_handle

LOW, HIGH = np.float32(-128), np.float32(127)


class Shadow:
    """The shadow of `matrix` (int8, one scale a row), whose inputs have the grid `scale`.

    `hot` int8 [count, rows] are the codes of the inputs `channels` i32 [count], kept apart because they often
    pass the grid; others are read out of the packed matrix. `inputs`, `out_scale` (None: outputs are not
    rounded) and `outputs` as above. `handle` is what native kernels take. Raises UserError for what does not
    fit.
    """

    __slots__ = ("channels", "handle", "hot", "inputs", "matrix", "out_scale", "outputs", "places", "scale")

    def __init__(
        self,
        matrix: Matrix,
        scale: float,
        *,
        inputs: bool = True,
        out_scale: float | None = None,
        outputs: bool = False,
        hot: Array | None = None,
        channels: Array | None = None,
    ) -> None:
        if matrix.kind != "int8" or matrix.group is not None:
            raise UserError(
                f"shadow: matrix must be int8 with one scale a row, got {matrix.kind}", field="matrix"
            )
        for name, value in (("scale", scale), ("out_scale", 1.0 if out_scale is None else out_scale)):
            if not 1e-30 <= value < 1e30:
                raise UserError(f"shadow: {name}={value} must be positive and finite", field=name)
        if (hot is None) != (channels is None):
            raise UserError("shadow: hot and channels belong together", field="hot")
        self.matrix, self.scale, self.inputs = matrix, scale, inputs
        self.out_scale, self.outputs = out_scale, outputs
        self.hot, self.channels, self.places = None, None, None
        if hot is not None and channels is not None and len(channels):
            self.hot = np.ascontiguousarray(check_array("shadow", "hot", hot, [None, matrix.rows], ("int8",)))
            self.channels = check_array("shadow", "channels", channels, [len(hot)], ("int32",))
            if not 0 <= int(channels.min()) <= int(channels.max()) < matrix.columns:
                raise UserError(f"shadow: channels must name 0..{matrix.columns - 1}", field="channels")
            self.places = np.full(matrix.columns, -1, np.int32)
            self.places[self.channels] = np.arange(len(hot), dtype=np.int32)
        module = native()
        self.handle: Any = None
        if module is not None:
            self.handle = module.Shadow(
                *(matrix_handle(matrix), self.hot, self.places, scale, inputs, out_scale or 0.0, outputs)
            )

    @property
    def idle(self) -> bool:
        """True when `finish` would give back what it is given."""
        return not self.inputs and self.out_scale is None

    def finish(
        self,
        x: Array,
        y: Array,
        *,
        out: Array | None = None,
        add: Array | None = None,
        bias: Array | None = None,
    ) -> Array:
        """What the product y f32 [n, rows] of x f32 [n, columns] becomes, into `out` (which may be `y`), plus
        `add` [n, rows] (which may be `out`) and then plus `bias` [rows] where given.

        Raises UserError for what does not fit.
        """
        to = np.empty_like(y) if out is None else out
        if self.handle is not None and self.handle.finish(x, y, to, add, bias):
            return to
        rows, columns = self.matrix.rows, self.matrix.columns
        check_array("shadow", "x", x, [None, columns])
        check_array("shadow", "y", y, [len(x), rows])
        check_out("shadow", to, (len(x), rows))
        if add is not None:
            check_array("shadow", "add", add, [len(x), rows])
        if bias is not None:
            check_array("shadow", "bias", bias, [rows])
        if self.handle is not None:
            refuse_arrays("shadow")
        found = finish_twin(self, x, y)
        found = found if add is None else add + found
        to[...] = found if bias is None else found + bias
        return to


def steps_beyond(x: Array, scale: float) -> Array:
    """r - clip(r) of every input of x, f32, with r = round(x / scale)."""
    r = np.rint(x * (np.float32(1) / np.float32(scale)))
    return np.asarray(r - np.clip(r, LOW, HIGH), np.float32)


def finish_twin(shadow: Shadow, x: Array, y: Array) -> Array:
    """The definition of `finish` without `add` and `bias`, in numpy: f32 [n, rows]."""
    more = np.zeros_like(y)
    if shadow.inputs:
        codes, scales = unpack_integers(shadow.matrix)
        beyond = np.where(np.isfinite(x), steps_beyond(x, shadow.scale), np.float32(0))
        # f64 holds sums of products of whole numbers exactly; below 2^24 f32 does so too.
        sums = (beyond.astype(np.float64) @ codes.astype(np.float64).T).astype(np.float32)
        more = np.asarray(sums * (scales.reshape(-1) * np.float32(shadow.scale)), np.float32)
    if shadow.out_scale is None:
        return np.asarray(y + more, np.float32)
    step = np.float32(shadow.out_scale)
    inverse = np.float32(1) / step
    r = np.rint(y * inverse)
    kept = np.asarray(np.clip(r, LOW, HIGH) * step + more, np.float32)
    if not shadow.outputs:
        return kept
    ends = (r <= LOW) | (r >= HIGH)
    return np.where(ends, np.rint((y + more) * inverse) * step, kept).astype(np.float32)
