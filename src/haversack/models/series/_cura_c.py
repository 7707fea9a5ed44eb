"""A fitted CURA network as one C99 file: int8 weights, tanh by a table of 64 entries, no malloc.

Each unit has a scale for what leads to it; knobs (d, m) and biases are floats. Rounding one matrix moves the
outputs; where rows are given, what is not rounded yet is fitted to the float network's outputs on them after
each matrix, biases and knobs last. The table spans 0..4, tanh being odd, and is interpolated; the gate's
sigmoid comes from the same table. `NAME_run(x, y)` takes raw inputs."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.models.series.cura import Arrays, Design, forward, polish, square_loss

F64 = NDArray[np.float64]
ENTRIES, REACH = 64, 4.0
ROUNDS = 60
"""Of the fit after each matrix is rounded."""
WHOLE = ("W_in", "S", "G", "W_out")
"""Arrays of int8; the others stay floats."""


def codes(design: Design, parameters: F64) -> dict[str, tuple[NDArray[np.int8], F64]]:
    """int8 numbers of each matrix, and a scale for each unit that they lead to."""
    return {name: _code(values) for name, values in design.split(parameters).items() if name in WHOLE}


def _code(values: F64) -> tuple[NDArray[np.int8], F64]:
    scale = np.abs(values).max(-2, keepdims=True, initial=0.0) / 127
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32).astype(np.float64)
    return np.rint(values / scale).astype(np.int8), scale


def rounded(design: Design, parameters: F64, rows: F64 | None = None) -> F64:
    """The parameters that the C file has. With `rows` [n, inputs], scaled as in training, the outputs on them
    stay near those of `parameters`."""
    out, free = parameters.copy(), np.ones_like(parameters)
    goal = None if rows is None else forward(design, design.split(parameters), rows)
    for name in (name for name in WHOLE if name in design.shapes()):
        values = design.split(out)[name]
        whole, scale = _code(values)
        values[...] = whole * scale
        design.split(free)[name][...] = 0
        if rows is not None:
            out = polish(design, out, rows, goal, square_loss, ROUNDS, free=free)
    for name, values in design.split(out).items():
        if name not in WHOLE:
            values[...] = values.astype(np.float32)
    return out


def _parameters(model: Any, rows: F64 | None) -> F64:
    """`rounded` of a fitted estimator, `rows` as it takes them."""
    scaled = None if rows is None else (np.asarray(rows, np.float64) - model.mean_) / model.scale_
    return rounded(model.design_, model.parameters_, scaled)


def weight_nbytes(model: Any) -> int:
    """Bytes of the constants: int8 matrices with a scale each, floats of biases, knobs, means and scales, the
    table."""
    design = model.design_
    small = codes(design, model.parameters_)
    floats = sum(v.size for name, v in design.split(model.parameters_).items() if name not in small)
    fixed = model.count()["fixed"]
    table = 0 if design.clip == "relu" and not design.gate else 4 * (ENTRIES + 1)
    return (
        sum(whole.nbytes + 4 * scale.size for whole, scale in small.values()) + 4 * (floats + fixed) + table
    )


def reference(model: Any, rows: F64, calibration: F64 | None = None) -> F64:
    """What the C file should give, without the table's own error."""
    design = model.design_
    parts = design.split(_parameters(model, calibration))
    made = forward(design, parts, (rows - model.mean_) / model.scale_)
    return np.asarray(made * getattr(model, "y_scale_", 1.0) + getattr(model, "y_mean_", 0.0))


def c_source(model: Any, name: str = "cura", rows: F64 | None = None) -> str:
    """The C file of a fitted estimator, its rounding fitted to `rows` where they are given. Raises UserError
    for a name that C does not take."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,40}", name):
        raise UserError(f"{name!r} is no name in C; use letters, digits and _.", field="name", given=name)
    design: Design = model.design_
    parameters = _parameters(model, rows)
    arrays: Arrays = design.split(parameters)
    lines = []
    for key, (whole, scale) in codes(design, parameters).items():
        numbers = ", ".join(str(int(code)) for code in whole.ravel())
        lines += [
            f"static const int8_t {key}[{whole.size}] = {{{numbers}}};",
            f"static const float {key}_scale[{scale.size}] = {{{_floats(scale)}}};",
        ]
    fixed = {
        **{key: values for key, values in arrays.items() if key not in WHOLE},
        "mean": model.mean_,
        "spread": 1 / model.scale_,
        "y_mean": getattr(model, "y_mean_", np.zeros(design.outputs)),
        "y_scale": getattr(model, "y_scale_", np.ones(design.outputs)),
    }
    for key, values in fixed.items():
        lines.append(f"static const float {key}[{values.size}] = {{{_floats(values)}}};")
    table = np.tanh(np.linspace(0, REACH, ENTRIES + 1))
    lines.append(f"static const float table[{ENTRIES + 1}] = {{{_floats(table)}}};")
    clip = {"tanh": "squash(z)", "sin": "sinf(z)", "relu": "z > 0 ? z : 0"}[design.clip]
    gate = ""
    if design.gate:
        gate = _GATE
    mixed = "h[j] + m[b * W + j] * a * s" if design.residual else "m[b * W + j] * a * s"
    return (
        _C.replace("@TABLES@", "\n".join(lines))
        .replace("@IN@", str(design.inputs))
        .replace("@OUT@", str(design.outputs))
        .replace("@W@", str(design.width))
        .replace("@B@", str(design.blocks))
        .replace("@CELL@", "0" if design.tied else "b")
        .replace("@GATE@", gate)
        .replace("@CLIP@", clip)
        .replace("@MIXED@", mixed)
        .replace("@NAME@", name)
        .replace("@COUNT@", str(design.count()))
        .replace("@NBYTES@", str(weight_nbytes(model)))
    )


def _floats(values: Any) -> str:
    return ", ".join(
        f"{float(value):.7g}f"
        if "." in f"{float(value):.7g}" or "e" in f"{float(value):.7g}"
        else f"{float(value):.7g}.0f"
        for value in np.ravel(values)
    )


_GATE = """
            float open = 0;
            for (int i = 0; i < W; i++) open += h[i] * (float)G[(cell * W + i) * W + j];
            a = 0.5f + 0.5f * squash(0.5f * (open * G_scale[cell * W + j] + g[cell * W + j]));"""

_C = """/* CURA (a reconstruction), @COUNT@ learned numbers, @NBYTES@ bytes of constants. */
#include <math.h>
#include <stdint.h>

#define IN @IN@
#define OUT @OUT@
#define W @W@
#define B @B@

@TABLES@

static float squash(float z) {
    float at = (z < 0 ? -z : z) * 16.0f, y = table[64];
    if (at < 64) {
        int low = (int)at;
        y = table[low] + (at - (float)low) * (table[low + 1] - table[low]);
    }
    return z < 0 ? -y : y;
}

/* Outputs y[OUT] of raw inputs x[IN]; of a classifier one logit a class. */
void @NAME@_run(const float *x, float *y) {
    float h[W], next[W];
    for (int j = 0; j < W; j++) {
        float sum = 0;
        for (int i = 0; i < IN; i++) sum += (x[i] - mean[i]) * spread[i] * (float)W_in[i * W + j];
        h[j] = squash(sum * W_in_scale[j] + b_in[j]);
    }
    for (int b = 0; b < B; b++) {
        int cell = @CELL@;
        for (int j = 0; j < W; j++) {
            float drive = 0, a = 1;
            for (int i = 0; i < W; i++) drive += h[i] * (float)S[(cell * W + i) * W + j];
            float z = d[b * W + j] * (drive * S_scale[cell * W + j] + c[cell * W + j]);
            float s = @CLIP@;@GATE@
            next[j] = @MIXED@;
        }
        for (int j = 0; j < W; j++) h[j] = next[j];
    }
    for (int o = 0; o < OUT; o++) {
        float sum = 0;
        for (int i = 0; i < W; i++) sum += h[i] * (float)W_out[i * OUT + o];
        y[o] = (sum * W_out_scale[o] + b_out[o]) * y_scale[o] + y_mean[o];
    }
}
"""
