"""ResNet8 as an ONNX network in 8-bit codes: the C beside ONNX Runtime.

MLPerf Tiny's float ResNet8 is written as ONNX and quantized by ONNX Runtime's own tool (QDQ, int8
activations, a scale for each channel of weights) on photographs; ONNX Runtime then runs the operators as they
stand in the model, in floats. Its numbers become codes where the model's last scale puts them. The C adds
whole numbers, so a code may differ by one where a float lies next to a half, and one code early can move
others after it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._compiler import need_gcc
from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.smart_composites_nn4mc._bench import bench
from haversack.bench.smart_composites_nn4mc._networks import Compiled, real_rows, tiny
from haversack.models.graph._ir import (
    Add,
    AveragePool,
    Clamp,
    Conv2d,
    FullyConnected,
    Graph,
    Mean,
    Op,
    Reshape,
    Softmax,
)

Array = np.ndarray[Any, Any]
CALIBRATION, COUNT = 64, 500
SOURCE = "photograph"
WATCHED = (
    "embed/_*.py",
    "embed/build.py",
    "embed/kernels/int8_*.j2",
    "models/graph/_execute.py",
    "models/graph/_onnx_*.py",
    "models/graph/onnx.py",
    "bench/smart_composites_nn4mc/onnx_codes.py",
)


def exported(graph: Graph, place: Path) -> Path:
    """A chain of convolutions, sums, means and dense layers over [height, width, channels] as ONNX."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants = [], {}
    shape = graph.tensors[graph.inputs[0]].shape

    def add(kind: str, reads: list[str], y: str, **more: Any) -> None:
        nodes.append(helper.make_node(kind, reads, [y], f"{kind} {y}", **more))

    def held(name: str, values: Array) -> str:
        constants[name] = np.ascontiguousarray(values, np.float32)
        return name

    add("Transpose", [SOURCE], graph.inputs[0], perm=[0, 3, 1, 2])
    for op in graph.ops:
        _one(graph, op, add, held)
    info = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        graph.name,
        [info(SOURCE, TensorProto.FLOAT, [1, *shape])],
        [info(graph.outputs[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    place.write_bytes(model.SerializeToString())
    return place


def _one(graph: Graph, op: Op, add: Any, held: Any) -> None:
    """The nodes of one operation; a ReLU after what has bounds."""
    y = op.writes[0]
    low = getattr(op, "low", -np.inf)
    bounded = isinstance(op, Clamp) or low == 0
    goal = f"{y} sums" if bounded and not isinstance(op, Clamp) else y
    if isinstance(op, Conv2d):
        (top, bottom), (left, right) = op.pads
        weight = held(op.weight, graph.constants[op.weight].transpose(0, 3, 1, 2))
        reads = [op.x, weight, *([held(op.bias, graph.constants[op.bias])] if op.bias else [])]
        add("Conv", reads, goal, strides=list(op.stride), pads=[top, left, bottom, right])
    elif isinstance(op, FullyConnected):
        bias = [held(op.bias, graph.constants[op.bias])] if op.bias else []
        add("Gemm", [op.x, held(op.weight, graph.constants[op.weight]), *bias], goal, transB=1)
    elif isinstance(op, Add):
        add("Add", [op.x, op.other], goal)
    elif isinstance(op, AveragePool | Mean):
        flat = isinstance(op, Mean)
        add("GlobalAveragePool", [op.x], f"{goal} places" if flat else goal)
        if flat:
            add("Flatten", [f"{goal} places"], goal)
    elif isinstance(op, Reshape):
        add("Flatten", [op.x], goal)
    elif isinstance(op, Softmax):
        add("Softmax", [op.x], goal)
    elif not isinstance(op, Clamp):
        raise Unavailable(f"{type(op).__name__} is not written as ONNX here")
    if bounded:
        add("Relu", [op.x if isinstance(op, Clamp) else goal], y)


def quantized(path: Path, pictures: Array, goal: Path) -> Path:
    """By ONNX Runtime's tool."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    class Pictures:
        def __init__(self) -> None:
            self.rows: Iterator[Any] = iter(pictures)

        def get_next(self) -> dict[str, Any] | None:
            row = next(self.rows, None)
            return None if row is None else {SOURCE: row[None]}

    kinds = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
    quantize_static(path, goal, Pictures(), quant_format=QuantFormat.QDQ, per_channel=True, **kinds)
    return goal


def oracle(path: Path, rows: Array) -> tuple[Array, Array]:
    """The outputs [n, classes] of ONNX Runtime with every operator as it stands in the model, and what its
    softmax reads."""
    import onnx
    import onnxruntime

    model = onnx.load(str(path))
    (before,) = (node.input[0] for node in model.graph.node if node.op_type == "Softmax")
    model.graph.output.append(onnx.helper.make_tensor_value_info(before, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = [[each.reshape(-1) for each in session.run(None, {SOURCE: row[None]})] for row in rows]
    ends, logits = (np.stack(each) for each in zip(*found, strict=True))
    return ends, logits


@bench.measure(
    Row("onnx-codes", f"ResNet8 as ONNX in codes: codes before the softmax that differ by more than one from "
        f"ONNX Runtime's over {COUNT} photographs", "codes", "quality", Bar("==", 0.0), judged="ours"),
    Row("onnx-codes-share", "the share of them that differ by one", "share", "quality", judged="ours"),
    Row("onnx-codes-softmax", "the largest difference after the softmax, which makes more of one code",
        "codes", "quality", judged="ours"),
    Row("onnx-codes-classes", "photographs that get the same class of both", "%", "quality",
        Bar(">=", 99.0), judged="ours"),
    Row("onnx-codes-python", "outputs of the C that differ from the Python graph", "outputs", "quality",
        Bar("==", 0.0), judged="ours"),
    seconds=40,
    watches=WATCHED,
)  # fmt: skip
def codes(run: Run) -> Outcomes:
    from haversack.embed.build import build_graph, load_graph
    from haversack.models.graph import Machine

    need_gcc()
    try:
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise Unavailable("onnxruntime is not installed: pip install 'haversack[onnx]'") from error
    pictures = real_rows("resnet8", CALIBRATION + COUNT).astype(np.float32)
    held, rows = pictures[:CALIBRATION], pictures[CALIBRATION : CALIBRATION + COUNT]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        path = exported(load_graph(tiny("resnet8", floats=True)), place / "floats.onnx")
        path = quantized(path, held, place / "codes.onnx")
        graph = load_graph(path)
        source, goal = (graph.tensors[each].quantization for each in (*graph.inputs, *graph.outputs))
        assert source is not None and goal is not None
        x = np.clip(np.rint(rows / np.float32(source.scale)) + source.zero, -128, 127).astype(np.int8)
        x = x.reshape(len(x), *graph.tensors[graph.inputs[0]].shape)
        build_graph(graph, place, count=1)
        ours = Compiled(place, graph).outputs(x).astype(int)
        ends, logits = oracle(path, rows)
    last = graph.ops[-1]
    assert isinstance(last, Softmax)
    middle = graph.tensors[last.x].quantization
    assert middle is not None
    theirs, before = (
        np.rint(each / np.float32(codes.scale)).astype(int) + codes.zero
        for each, codes in ((ends, goal), (logits, middle))
    )
    python = Machine(replace(graph, outputs=(last.x, last.y))).run({graph.inputs[0]: x})
    gap = np.abs(python[last.x].reshape(before.shape) - before)
    note = f"{len(rows)} photographs, {gap.size:,} codes, {np.unique(before).size} of them occur"
    same = 100 * float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())
    return {
        "onnx-codes": Outcome.single(float((gap > 1).sum()), name="C", note=f"{note}; at most {gap.max()}"),
        "onnx-codes-share": Outcome.single(float((gap == 1).mean()), name="C"),
        "onnx-codes-softmax": Outcome.single(float(np.abs(ours - theirs).max()), name="C"),
        "onnx-codes-classes": Outcome.single(same, name="C"),
        "onnx-codes-python": Outcome.single(
            float((ours != python[last.y].reshape(ours.shape)).sum()), name="C"
        ),
    }
