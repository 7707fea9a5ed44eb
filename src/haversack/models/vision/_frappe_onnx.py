"""FRAPPE's decoder without PyTorch: its weights as an ONNX graph, made in memory and run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from haversack.core.errors import MissingExtraError, UserError
from haversack.formats.latent_stream import Stream, padded_sides
from haversack.models.vision.frappe import F32, HEAD, U8, DecoderShape, on_grid

TILE = 128
"""Grid cells of a tile's side; its margins come on top."""
NORM_EPS = 1e-6


class OnnxDecoder:
    """Decodes the first channels of streams, those of `patches`. Raises UserError for tensors that are not
    the decoder's, MissingExtraError without ONNX Runtime."""

    def __init__(
        self, tensors: Mapping[str, F32], patches: Sequence[int], shape: DecoderShape, threads: int = 0
    ) -> None:
        for name, wanted in shape.expected(patches).items():
            found = tensors.get(name)
            if found is None or found.shape != wanted or not np.isfinite(found).all():
                seen = "missing" if found is None else f"{list(found.shape)} or not finite"
                raise UserError(f"the decoder's {name} is {seen}, not {list(wanted)}.", field="model")
        self.patches, self.shape = tuple(patches), shape
        self._session = _session(_graph(tensors, shape), threads)

    def decode(self, stream: Stream) -> F32:
        """The picture, f32 [h, w, 3] within 0 .. 255, not rounded. Large ones are decoded in tiles, with the
        same result."""
        part = stream.first(len(self.patches))
        grid = on_grid(part.maps, tuple(dict.fromkeys(self.patches)), self.shape.grid)
        high, wide = padded_sides(stream.height, stream.width, self.patches[0])
        cells = self.shape.grid
        rows, columns = high // cells, wide // cells
        out = np.empty((high, wide, 3), np.float32)
        margin = self.shape.margin
        step = TILE if margin is not None else max(rows, columns)
        for top in range(0, rows, step):
            for left in range(0, columns, step):
                m = margin or 0
                y0, x0 = max(0, top - m), max(0, left - m)
                y1, x1 = min(rows, top + step + m), min(columns, left + step + m)
                found = self._session.run(None, {"x": np.ascontiguousarray(grid[None, :, y0:y1, x0:x1])})[0]
                kept = found[0, :, (top - y0) * cells :, (left - x0) * cells :].transpose(1, 2, 0)
                ends = min(high, (top + step) * cells), min(wide, (left + step) * cells)
                out[top * cells : ends[0], left * cells : ends[1]] = kept[
                    : ends[0] - top * cells, : ends[1] - left * cells
                ]
        cut = out[: stream.height, : stream.width]
        return np.ascontiguousarray((cut + 1) * np.float32(127.5))

    def picture(self, stream: Stream) -> U8:
        """The picture, rounded to bytes."""
        return np.rint(self.decode(stream)).astype(np.uint8)


def _session(model: Any, threads: int) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError("decoding latents", "onnxruntime", "codec") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


class _Made:
    """Nodes of a graph as they are added."""

    def __init__(self, onnx: Any) -> None:
        self.onnx, self.count = onnx, 0
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"t{self.count + at}" for at in range(outputs)]
        self.count += outputs
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names


def _graph(tensors: Mapping[str, F32], shape: DecoderShape) -> Any:
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ModuleNotFoundError as error:
        raise MissingExtraError("decoding latents", "onnx", "codec") from error
    g = _Made(onnx)

    def weights(name: str) -> tuple[str, str]:
        return g.constant(tensors[f"{name}.weight"]), g.constant(tensors[f"{name}.bias"])

    def conv(x: str, name: str, pad: int = 0, group: int = 1) -> str:
        made: str = g.add("Conv", x, *weights(name), pads=[pad] * 4, group=group)
        return made

    def norm(x: str, name: str) -> str:
        last = g.add("Transpose", x, perm=[0, 2, 3, 1])
        made = g.add("LayerNormalization", last, *weights(name), axis=-1, epsilon=NORM_EPS)
        back: str = g.add("Transpose", made, perm=[0, 3, 1, 2])
        return back

    width = shape.width
    pads = g.constant([0, 0, 2, 2, 0, 0, 2, 2], np.int64)
    x = conv(g.add("Pad", "x", pads, mode="reflect"), "embed")
    for at, letter in enumerate(shape.arch):
        name = f"blocks.{at}"
        if letter == "C":
            y = conv(norm(conv(x, f"{name}.depth", 2, width), f"{name}.norm"), f"{name}.up")
        else:
            x = _attended(g, x, name, width, conv, norm)
            y = conv(conv(norm(x, f"{name}.norm"), f"{name}.up"), f"{name}.mix", 1, 4 * width)
        y = conv(g.add("Gelu", y, approximate="tanh"), f"{name}.down")
        x = g.add("Add", x, y)
    x = conv(x, "head")
    x = g.add("ConvTranspose", x, *weights("paint"), strides=[shape.grid] * 2)
    x = g.add("Clip", x, g.constant(-1.0), g.constant(1.0))
    kind = onnx.TensorProto.FLOAT
    given = onnx.helper.make_tensor_value_info("x", kind, [1, None, None, None])
    found = onnx.helper.make_tensor_value_info(x, kind, [1, 3, None, None])
    graph = onnx.helper.make_graph(g.nodes, "frappe", [given], [found], g.constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)


def _attended(g: _Made, x: str, name: str, width: int, conv: Any, norm: Any) -> str:
    """x plus its attention: coordinates are made of the picture's size."""
    sizes = g.add("Shape", x)
    axes = []
    for axis in (2, 3):
        count = g.add("Gather", sizes, g.constant(axis, np.int64))
        many = g.add("Cast", count, to=1)
        steps = g.add("Cast", g.add("Range", g.constant(0, np.int64), count, g.constant(1, np.int64)), to=1)
        middle = g.add("Add", g.add("Mul", steps, g.constant(2.0)), g.constant(1.0))
        line = g.add("Sub", g.add("Div", middle, many), g.constant(1.0))
        axes.append(
            g.add("Reshape", line, g.constant([1, 1, -1, 1] if axis == 2 else [1, 1, 1, -1], np.int64))
        )
    one = g.constant([1], np.int64)
    rows, columns = (g.add("Gather", sizes, g.constant([axis], np.int64)) for axis in (2, 3))
    goal = g.add("Concat", one, one, rows, columns, axis=0)
    where = [g.add("Expand", line, goal) for line in axes]
    three = conv(g.add("Concat", norm(x, f"{name}.norm1"), *where, axis=1), f"{name}.qkv")
    split = g.add("Reshape", three, g.constant([1, 3, width // HEAD, HEAD, -1], np.int64))
    query, key, value = (
        g.add("Squeeze", part, one) for part in g.add("Split", split, outputs=3, axis=1, num_outputs=3)
    )
    scores = g.add("MatMul", g.add("Transpose", query, perm=[0, 1, 3, 2]), key)
    share = g.add("Softmax", g.add("Mul", scores, g.constant(HEAD**-0.5)), axis=-1)
    seen = g.add("MatMul", value, g.add("Transpose", share, perm=[0, 1, 3, 2]))
    flat = g.add("Reshape", seen, g.add("Concat", one, g.constant([width], np.int64), rows, columns, axis=0))
    added: str = g.add("Add", x, conv(flat, f"{name}.proj"))
    return added
