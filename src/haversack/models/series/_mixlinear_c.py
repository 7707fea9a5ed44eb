"""MixLinear as one C99 file for a microcontroller: int8 factors, no malloc, nothing but the standard library.

The factors are stored, one scale each. `NAME_prepare` multiplies them out once into the map between periods
(a few kilobytes of memory); `NAME_forecast` then costs period + 1 multiplications a step and one map a phase.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.models.series.mixlinear import MixLinear

F64 = NDArray[np.float64]
PARTS = ("kernel", "within", "across", "narrow_re", "narrow_im", "wide_re", "wide_im")


def eight_bits(values: F64) -> tuple[NDArray[np.int8], float]:
    """Numbers as int8 and their one scale."""
    scale = float(np.abs(values).max(initial=0.0)) / 127 or 1.0
    return np.rint(values / scale).astype(np.int8), float(np.float32(scale))


def factors(model: MixLinear) -> dict[str, F64]:
    """The learned numbers by the names they have in C."""
    narrow, wide = model.narrow_, model.wide_
    found = (model.kernel_, model.within_, model.across_, narrow.real, narrow.imag, wide.real, wide.imag)
    return dict(zip(PARTS, found, strict=True))


def rounded(model: MixLinear) -> MixLinear:
    """The model with the numbers that its C file has."""
    model._need_fit("parameters_")
    kept: dict[str, F64] = {
        name: np.asarray(codes * scale, np.float64) for name, (codes, scale) in _codes(model).items()
    }
    out = MixLinear(**model.get_params())
    out.mean_, out.scale_ = model.mean_, model.scale_
    order = ("within", "across", "narrow_re", "narrow_im", "wide_re", "wide_im")
    out._keep(kept["kernel"], np.concatenate([kept[name].ravel() for name in order]))
    return out


def weight_nbytes(model: MixLinear) -> int:
    """Bytes of the constants in the C file."""
    return sum(codes.nbytes + 4 for codes, _ in _codes(model).values())


def _codes(model: MixLinear) -> dict[str, tuple[NDArray[np.int8], float]]:
    return {name: eight_bits(values) for name, values in factors(model).items()}


def c_source(model: MixLinear, name: str = "forecast") -> str:
    """The C file. Raises UserError for a name that C does not take."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,40}", name):
        raise UserError(f"{name!r} is no name in C; use letters, digits and _.", field="name", given=name)
    model._need_fit("parameters_")
    tables = []
    for part, (codes, scale) in _codes(model).items():
        numbers = ", ".join(str(int(code)) for code in codes.ravel())
        tables.append(f"static const int8_t {part}[{codes.size}] = {{{numbers}}};")
        tables.append(f"static const float {part}_scale = {scale:.9g}f;")
    mixed = model._map()
    sizes = {
        "SEQ": model.seq,
        "HORIZON": model.horizon,
        "PERIOD": model.period,
        "BACK": model.periods_back,
        "AHEAD": model.periods_ahead,
        "SIDE": mixed.sides[1],
        "TALL": mixed.sides[0],
        "BINS": model._bins(),
        "RANK": model.rank,
    }
    defines = "\n".join(f"#define {key} {value}" for key, value in sizes.items())
    return (
        _C.replace("@DEFINES@", defines)
        .replace("@TABLES@", "\n".join(tables))
        .replace("@ALPHA@", f"{model._alpha():.9g}f")
        .replace("@NAME@", name)
        .replace("@COUNT@", str(model.count()))
        .replace("@NBYTES@", str(weight_nbytes(model)))
    )


_C = """/* MixLinear, @COUNT@ learned numbers, @NBYTES@ bytes of constants. Call @NAME@_prepare once. */
#include <math.h>
#include <stdint.h>

@DEFINES@

@TABLES@

static float map_[AHEAD * BACK];

void @NAME@_prepare(void) {
    const float turn = 6.283185307f, alpha = @ALPHA@;
    for (int a = 0; a < AHEAD; a++)
        for (int b = 0; b < BACK; b++) {
            float time = (float)across[a / TALL * SIDE + b / SIDE] * across_scale *
                         ((float)within[a % TALL * SIDE + b % SIDE] * within_scale);
            map_[a * BACK + b] = alpha * time;
        }
    for (int r = 0; r < RANK; r++)
        for (int b = 0; b < BACK; b++) {
            float re = 0, im = 0; /* what bin after bin of the narrow factor makes of period b */
            for (int k = 0; k < BINS; k++) {
                float at = turn * (float)(k * b % BACK) / BACK, c = cosf(at), s = -sinf(at);
                float u = (float)narrow_re[r * BINS + k] * narrow_re_scale;
                float v = (float)narrow_im[r * BINS + k] * narrow_im_scale;
                re += u * c - v * s;
                im += u * s + v * c;
            }
            for (int a = 0; a < AHEAD; a++) {
                float up_re = 0, up_im = 0; /* row a of the inverse transform, through the wide factor */
                for (int k = 0; k < AHEAD; k++) {
                    float at = turn * (float)(k * a % AHEAD) / AHEAD, c = cosf(at), s = sinf(at);
                    float u = (float)wide_re[k * RANK + r] * wide_re_scale;
                    float v = (float)wide_im[k * RANK + r] * wide_im_scale;
                    up_re += u * c - v * s;
                    up_im += u * s + v * c;
                }
                map_[a * BACK + b] += (1 - alpha) * (up_re * re - up_im * im) / AHEAD;
            }
        }
}

/* The next HORIZON steps of one channel after its last SEQ samples, in the samples' own unit. */
void @NAME@_forecast(const float *window, float *ahead) {
    float mean = 0;
    for (int t = 0; t < SEQ; t++) mean += window[t];
    mean /= SEQ;
    for (int t = 0; t < HORIZON; t++) ahead[t] = mean;
    for (int t = 0; t < SEQ; t++) {
        float smooth = 0;
        for (int k = 0; k <= PERIOD; k++) {
            int at = t + k - (PERIOD + 1) / 2;
            if (at >= 0 && at < SEQ) smooth += (float)kernel[k] * (window[at] - mean);
        }
        smooth = window[t] - mean + kernel_scale * smooth;
        for (int a = 0; a < AHEAD; a++) {
            int goal = a * PERIOD + t % PERIOD;
            if (goal < HORIZON) ahead[goal] += map_[a * BACK + t / PERIOD] * smooth;
        }
    }
}
"""
