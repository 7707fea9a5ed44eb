"""The baseline of emitted C: a compiled executor that runs a graph of codes operation by operation.

It walks a table of operations at run time, as an interpreter on a microcontroller does, and calls one
general kernel for each: zeros around the picture are written into a copy, a convolution leaves its 32-bit
sums in memory, the bias is added in a pass of its own, then the sums become codes in a third one. Nothing is
fused, nothing has SIMD (it is compiled with -O2 and without the vectorizer), every buffer has its own place.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from haversack.models.graph._integer import multipliers
from haversack.models.graph._ir import Conv2d, DepthwiseConv2d, Graph

Array = np.ndarray[Any, Any]

SOURCE = r"""
#include <stdint.h>
#include <string.h>

typedef struct {
    int kind, height, width, channels, kernel_height, kernel_width, stride_y, stride_x, top, left;
    int padded_height, padded_width, out_height, out_width, outputs, zero_x, zero, low, high;
    const int8_t *x, *weights;
    const int32_t *bias, *multipliers;
    const int8_t *shifts;
    int8_t *padded, *y;
    int32_t *sums;
} operation;

static int32_t scaled(int32_t x, int32_t m, int shift)
{
    int64_t high = (((int64_t)x << (shift > 0 ? shift : 0)) * m + ((int64_t)1 << 30)) >> 31;
    int right = shift < 0 ? -shift : 0;
    int64_t mask = ((int64_t)1 << right) - 1;
    return (int32_t)((high >> right) + ((high & mask) > (mask >> 1) + (high < 0)));
}

static void pad(const operation *o)
{
    for (int i = 0; i < o->padded_height; i++)
        for (int j = 0; j < o->padded_width; j++)
            for (int c = 0; c < o->channels; c++) {
                int row = i - o->top, column = j - o->left;
                int inside = row >= 0 && row < o->height && column >= 0 && column < o->width;
                o->padded[(i * o->padded_width + j) * o->channels + c] =
                    (int8_t)(inside ? o->x[(row * o->width + column) * o->channels + c] : o->zero_x);
            }
}

static void convolve(const operation *o)
{
    int32_t *sum = o->sums;
    for (int row = 0; row < o->out_height; row++)
        for (int column = 0; column < o->out_width; column++)
            for (int k = 0; k < o->outputs; k++, sum++) {
                *sum = 0;
                for (int i = 0; i < o->kernel_height; i++)
                    for (int j = 0; j < o->kernel_width; j++) {
                        int from = (row * o->stride_y + i) * o->padded_width + column * o->stride_x + j;
                        const int8_t *seen = o->padded + from * o->channels;
                        int place = i * o->kernel_width + j;
                        if (o->kind == 1) {
                            *sum += (seen[k] - o->zero_x) * o->weights[place * o->channels + k];
                            continue;
                        }
                        int size = o->kernel_height * o->kernel_width;
                        const int8_t *kernel = o->weights + (k * size + place) * o->channels;
                        for (int c = 0; c < o->channels; c++)
                            *sum += (seen[c] - o->zero_x) * kernel[c];
                    }
            }
}

static void add_bias(const operation *o)
{
    for (int i = 0; i < o->out_height * o->out_width; i++)
        for (int k = 0; k < o->outputs; k++)
            o->sums[i * o->outputs + k] += o->bias[k];
}

static void requantize(const operation *o)
{
    for (int i = 0; i < o->out_height * o->out_width; i++)
        for (int k = 0; k < o->outputs; k++) {
            int32_t code = scaled(o->sums[i * o->outputs + k], o->multipliers[k], o->shifts[k]) + o->zero;
            o->y[i * o->outputs + k] = (int8_t)(code < o->low ? o->low : code > o->high ? o->high : code);
        }
}

void execute(const operation *operations, int count)
{
    static void (*const steps[])(const operation *) = {pad, convolve, add_bias, requantize};
    for (int at = 0; at < count; at++)
        for (int step = 0; step < 4; step++)
            steps[step](operations + at);
}
"""

DECLARED = """kind height width channels kernel_height kernel_width stride_y stride_x top left padded_height
padded_width out_height out_width outputs zero_x zero low high"""
NUMBERS = tuple(DECLARED.split())
POINTERS = ("x", "weights", "bias", "multipliers", "shifts", "padded", "y", "sums")


class _Operation(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in NUMBERS] + [(name, ctypes.c_void_p) for name in POINTERS]


class Executor:
    """The convolutions of a graph of codes (LiteRT's rounding), one after the other."""

    def __init__(self, graph: Graph, folder: Path) -> None:
        from haversack.embed._host import run

        source, goal = folder / "executor.c", folder / "executor.so"
        source.write_text(SOURCE, encoding="utf-8")
        flags = ["-std=c99", "-O2", "-fno-tree-vectorize", "-shared", "-fPIC"]
        run(["gcc", *flags, source, "-o", goal])
        self.c = ctypes.CDLL(str(goal))
        self.buffers: dict[str, Array] = {}
        self.kept: list[Array] = []
        ops = graph.convolutions()
        self.operations = (_Operation * len(ops))(*(self._operation(graph, op) for op in ops))

    def run(self) -> None:
        """One pass."""
        self.c.execute(self.operations, len(self.operations))

    def _buffer(self, graph: Graph, name: str) -> Array:
        if name not in self.buffers:
            self.buffers[name] = np.zeros(graph.tensors[name].shape, np.int8)
        return self.buffers[name]

    def _operation(self, graph: Graph, op: Conv2d) -> _Operation:
        x, y, weight = (graph.tensors[name] for name in (op.x, op.y, op.weight))
        depthwise = isinstance(op, DepthwiseConv2d)
        kernel = weight.shape[:2] if depthwise else weight.shape[1:3]
        assert x.quantization and y.quantization and weight.quantization and op.bias is not None
        scales = x.quantization.scale * weight.quantization.array() / y.quantization.scale
        m, shifts = multipliers(np.broadcast_to(scales, (y.shape[-1],)))
        (top, bottom), (left, right) = op.pads
        padded = (x.shape[0] + top + bottom, x.shape[1] + left + right)
        arrays = [
            self._buffer(graph, op.x),
            np.ascontiguousarray(graph.constants[op.weight]),
            np.ascontiguousarray(graph.constants[op.bias]),
            m.astype(np.int32),
            shifts.astype(np.int8),
            np.zeros((*padded, x.shape[2]), np.int8),
            self._buffer(graph, op.y),
            np.zeros(y.shape, np.int32),
        ]
        self.kept += arrays
        numbers = (
            *(int(depthwise), *x.shape, *kernel, *op.stride, top, left, *padded, *y.shape),
            *(x.quantization.zero, y.quantization.zero, int(max(op.low, -128)), int(min(op.high, 127))),
        )
        return _Operation(*numbers, *(each.ctypes.data for each in arrays))
