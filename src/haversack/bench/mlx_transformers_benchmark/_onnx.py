"""ONNX Runtime: the encoder written as a graph by us, with the fused attention that the runtime has, in f32
and with its own dynamic int8 quantization."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._cache import cached
from haversack.bench.mlx_transformers_benchmark._backends import Batch, Checkpoint

F32 = npt.NDArray[np.float32]
OPSET = 17
GELUS = {"gelu": "none", "gelu-tanh": "tanh"}


class Graph:
    """Nodes and initializers of a graph on their way."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._numpy = helper, numpy_helper
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def constant(self, name: str, values: Any) -> str:
        """An initializer."""
        self.initializers.append(self._numpy.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, kind: str, inputs: list[str], domain: str = "", **attributes: Any) -> str:
        """A node; its output's name."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(
            self._helper.make_node(kind, inputs, [name], name=name, domain=domain, **attributes)
        )
        return name


def build(checkpoint: Checkpoint) -> Any:
    """The graph: ids, types, positions i64 and mask i32 [texts, n] -> f32 [texts, n, width]."""
    from onnx import TensorProto, helper

    one, tensors, graph = checkpoint.architecture, checkpoint.tensors, Graph()

    def linear(x: str, layer: Any) -> str:
        weight = graph.constant(layer.weight, tensors[layer.weight].T)
        bias = graph.constant(layer.bias, tensors[layer.bias])
        return graph.node("Add", [graph.node("MatMul", [x, weight]), bias])

    def norm(x: str, layer: Any) -> str:
        weight = graph.constant(layer.weight, tensors[layer.weight])
        bias = graph.constant(layer.bias, tensors[layer.bias])
        return graph.node("LayerNormalization", [x, weight, bias], axis=-1, epsilon=layer.eps)

    def rows(table: str, numbers: str) -> str:
        return graph.node("Gather", [graph.constant(table, tensors[table]), numbers])

    def activation(x: str, kind: str) -> str:
        if kind == "relu":
            return graph.node("Relu", [x])
        if kind == "silu":
            return graph.node("Mul", [x, graph.node("Sigmoid", [x])])
        if kind == "gelu":
            return graph.node("Gelu", [x], domain="com.microsoft")
        return graph.node("FastGelu", [x], domain="com.microsoft")

    hidden = graph.node("Add", [rows(one.embedding, "ids"), rows(one.types, "types")])
    hidden = norm(graph.node("Add", [hidden, rows(one.positions, "positions")]), one.embedding_norm)
    for block in one.blocks:
        attention, feed = (branch.layer for branch in block.branches)
        parts = [attention.query, attention.key, attention.value]  # type: ignore[union-attr]
        name = f"block.{block.index}.query_key_value"
        weight = graph.constant(
            f"{name}.weight", np.concatenate([tensors[part.weight].T for part in parts], axis=1)
        )
        biases = [tensors[part.bias] for part in parts]  # type: ignore[index]
        bias = graph.constant(f"{name}.bias", np.concatenate(biases))
        seen = graph.node(
            "Attention",
            [hidden, weight, bias, "mask"],
            domain="com.microsoft",
            num_heads=attention.heads,  # type: ignore[union-attr]
        )
        first, second = (branch.after_norm for branch in block.branches)
        seen = linear(seen, attention.output)  # type: ignore[union-attr]
        hidden = norm(graph.node("Add", [hidden, seen]), first)
        inner = activation(linear(hidden, feed.up), feed.activation)  # type: ignore[union-attr]
        hidden = norm(graph.node("Add", [hidden, linear(inner, feed.down)]), second)  # type: ignore[union-attr]
    hidden = graph.node("Identity", [hidden])
    graph.nodes[-1].output[0] = "hidden"
    integers = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "n"])
        for name in ("ids", "types", "positions")
    ]
    made = helper.make_graph(
        graph.nodes,
        "encoder",
        [*integers, helper.make_tensor_value_info("mask", TensorProto.INT32, ["texts", "n"])],
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["texts", "n", one.width])],
        graph.initializers,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=8)


def graph_file(checkpoint: Checkpoint, int8: bool) -> Path:
    """The graph of `checkpoint` as a file, kept by content; `int8`: quantized by the runtime's own tool."""
    import onnxruntime

    folder = checkpoint.folder
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]
    program = Path(__file__).read_text(encoding="utf-8")
    inputs = {"folder": str(folder.resolve()), "files": files, "program": program}

    def make(goal: Path) -> None:
        import onnx

        onnx.save(build(checkpoint), goal / "model.onnx")

    def quantize(goal: Path) -> None:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            cached("encoder-onnx", inputs, make) / "model.onnx",
            goal / "model.onnx",
            op_types_to_quantize=["MatMul", "Attention"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )

    if not int8:
        return cached("encoder-onnx", inputs, make) / "model.onnx"
    return cached("encoder-onnx-int8", {**inputs, "by": onnxruntime.__version__}, quantize) / "model.onnx"


class OnnxModel:
    """A session over a graph file."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, batch: Batch) -> Any:
        """See Loaded."""
        given = {
            "ids": batch.ids,
            "types": batch.types,
            "positions": batch.positions,
            "mask": batch.mask.astype(np.int32),
        }
        return self.session.run(["hidden"], given)[0]

    def finish(self, result: Any) -> None:
        """It is computed already."""

    def array(self, result: Any) -> F32:
        """See Loaded."""
        return np.asarray(result, np.float32)


class OnnxRuntime:
    """f32."""

    name = "onnxruntime"
    exact = True
    int8 = False

    def unavailable(self) -> str | None:
        """See Backend."""
        absent = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
        if absent:
            return f"{' and '.join(absent)} not installed; run: pip install 'haversack[onnx]'"
        return None

    def load(self, checkpoint: Checkpoint, threads: int) -> OnnxModel:
        """See Backend."""
        return OnnxModel(graph_file(checkpoint, self.int8), threads)


class OnnxRuntimeInt8(OnnxRuntime):
    """Weights int8 per column, inputs quantized as they come."""

    name = "onnxruntime-int8"
    exact = False
    int8 = True
