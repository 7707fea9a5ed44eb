"""ONNX networks in 8-bit codes: what ONNX Runtime computes of them, as C to the bit, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from tests.embed.test_onnx import Nodes, drawn, saved

from haversack.core.errors import UserError
from haversack.embed.build import build, load_graph
from haversack.embed.verify import verify
from haversack.models.graph import Machine
from haversack.models.graph._ir import DepthwiseConv2d, Graph

SHAPE = (1, 3, 12, 10)


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Some inputs."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.rows: Iterator[Any] = iter(rng.normal(size=(40, *SHAPE)).astype(np.float32))

    def get_next(self) -> dict[str, Any] | None:
        row = next(self.rows, None)
        return None if row is None else {"x": row}


def floats(place: Path) -> Path:
    nodes: Nodes = [
        ("Conv", ["x", "w1", "b1"], ["c1"], {"strides": [2, 2], "pads": [1, 0, 1, 1]}),
        ("Relu", ["c1"], ["r1"], {}),
        ("Conv", ["r1", "w2", "b2"], ["c2"], {"group": 8, "pads": [1, 1, 1, 1]}),
        ("Clip", ["c2", "zero", "six"], ["r2"], {}),
        ("Conv", ["r2", "w3"], ["c3"], {}),
        ("Add", ["r1", "c3"], ["a"], {}),
        ("Relu", ["a"], ["r3"], {}),
        ("MaxPool", ["r3"], ["m"], {"kernel_shape": [3, 2], "strides": [1, 1], "pads": [1, 0, 1, 0]}),
        ("Conv", ["m", "w4", "b4"], ["c4"], {}),
        ("AveragePool", ["c4"], ["v"], {"kernel_shape": [3, 3], "strides": [1, 1]}),
        ("Conv", ["v", "w5", "b5"], ["c5"], {"pads": [1, 1, 1, 1]}),
        ("Transpose", ["c5"], ["t"], {"perm": [0, 2, 3, 1]}),
        ("Flatten", ["t"], ["f"], {"axis": 1}),
        ("Gemm", ["f", "w6", "b6"], ["d"], {"transB": 1}),
        ("Relu", ["d"], ["e"], {}),
        ("Gemm", ["e", "w7", "b7"], ["g"], {}),
        ("Softmax", ["g"], ["y"], {"axis": -1}),
    ]
    constants = {
        "w1": drawn(8, 3, 3, 3), "b1": drawn(8), "w2": drawn(8, 1, 3, 3), "b2": drawn(8),
        "w3": drawn(8, 8, 1, 1), "w4": drawn(6, 8, 1, 1), "b4": drawn(6), "w5": drawn(5, 6, 3, 3),
        "b5": drawn(5), "w6": drawn(9, 40), "b6": drawn(9), "w7": drawn(9, 4), "b7": drawn(4),
        "zero": np.float32(0).reshape(()), "six": np.float32(6).reshape(()),
    }  # fmt: skip
    return saved(place / "floats.onnx", nodes, constants, {"x": list(SHAPE)})


def quantized(place: Path, activations: str, per_channel: bool, symmetric: bool) -> Path:
    goal = place / "codes.onnx"
    quantize_static(
        str(floats(place)),
        str(goal),
        Calibration(),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=getattr(QuantType, activations),
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": symmetric},
    )
    return goal


def codes_of(graph: Graph, x: np.ndarray) -> np.ndarray:
    codes = graph.tensors[graph.inputs[0]].quantization
    assert codes is not None
    found = np.clip(np.rint(x / np.float32(codes.scale)) + codes.zero, -128, 127).astype(np.int8)
    return found.reshape(len(x), *graph.tensors[graph.inputs[0]].shape)


def oracle(path: Path, x: np.ndarray) -> np.ndarray:
    """Of ONNX Runtime, every operator as it stands in the model."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.stack([session.run(None, {"x": each})[0].reshape(-1) for each in x])


@pytest.mark.parametrize(
    ("activations", "per_channel", "symmetric"),
    [("QInt8", True, False), ("QUInt8", False, False), ("QInt8", False, True)],
)
def test_an_exporters_network_gives_onnx_runtimes_codes(
    tmp_path: Path, activations: str, per_channel: bool, symmetric: bool
) -> None:
    """A code may differ by one where a float lies next to a half (means of nine are never there), and softmax
    makes more of it."""
    path = quantized(tmp_path, activations, per_channel, symmetric)
    graph = load_graph(path)
    assert {graph.tensors[name].dtype for op in graph.ops for name in op.writes} == {"int8"}
    x = np.random.default_rng(6).normal(size=(60, *SHAPE)).astype(np.float32)
    found = Machine(graph).run({graph.inputs[0]: codes_of(graph, x)})[graph.outputs[0]].reshape(60, -1)
    goal = graph.tensors[graph.outputs[0]].quantization
    assert goal is not None
    wanted = np.rint(oracle(path, x) / np.float32(goal.scale)) + goal.zero
    assert np.ptp(wanted) > 60
    assert (found != wanted).mean() < 0.02 and (found != wanted).any(axis=1).mean() < 0.05
    if shutil.which("gcc") is not None:
        build(path, tmp_path / "c")
        done = verify(tmp_path / "c")
        assert done.holds and all(run.largest == 0 for run in done.runs)


def one_layer(place: Path, nodes: Nodes, **constants: np.ndarray) -> Path:
    """x in codes, then `nodes` from "xd" on."""
    begin: Nodes = [
        ("QuantizeLinear", ["x", "s", "z"], ["xq"], {}),
        ("DequantizeLinear", ["xq", "s", "z"], ["xd"], {}),
    ]
    held = {"s": np.float32(0.05).reshape(()), "z": np.int8(3).reshape(()), **constants}
    return saved(place / "one.onnx", [*begin, *nodes], held, {"x": [1, 4, 6, 6]})


CODED = {
    "wq": np.random.default_rng(1).integers(-127, 128, (5, 4, 1, 1)).astype(np.int8),
    "ws": np.linspace(0.01, 0.02, 5, dtype=np.float32),
    "wz": np.zeros(5, np.int8),
    "t": np.float32(0.0731).reshape(()),
    "u": np.uint8(120).reshape(()),
}
LAYER: Nodes = [
    ("DequantizeLinear", ["wq", "ws", "wz"], ["w"], {"axis": 0}),
    ("Conv", ["xd", "w"], ["c"], {}),
]
END: Nodes = [
    ("QuantizeLinear", ["c", "t", "u"], ["yq"], {}),
    ("DequantizeLinear", ["yq", "t", "u"], ["y"], {}),
]


def test_a_layer_is_the_definition_in_whole_numbers(tmp_path: Path) -> None:
    """uint8 codes lie 128 below; input and output are codes."""
    graph = load_graph(one_layer(tmp_path, [*LAYER, *END], **CODED))
    x = np.random.default_rng(2).integers(-128, 128, (7, 6, 6, 4)).astype(np.int8)
    found = Machine(graph).run({graph.inputs[0]: x.transpose(0, 3, 1, 2)})[graph.outputs[0]]
    sums = np.einsum("nhwc,oc->nohw", x.astype(np.int64) - 3, CODED["wq"][:, :, 0, 0].astype(np.int64))
    factor = (
        np.float64(np.float32(0.05)) * CODED["ws"].astype(float) / np.float64(np.float32(0.0731))
    ).astype(np.float32)
    wanted = np.clip(np.rint(sums.astype(np.float32) * factor[:, None, None]) + 120 - 128, -128, 127)
    assert np.array_equal(found.reshape(wanted.shape), wanted)
    assert graph.tensors[graph.outputs[0]].quantization.zero == -8  # type: ignore[union-attr]


def test_a_mean_between_two_scales_is_a_layer_of_ones(tmp_path: Path) -> None:
    nodes: Nodes = [("AveragePool", ["xd"], ["c"], {"kernel_shape": [2, 2], "strides": [2, 2]}), *END]
    path = one_layer(tmp_path, nodes, **{name: CODED[name] for name in "tu"})
    graph = load_graph(path)
    assert any(isinstance(op, DepthwiseConv2d) for op in graph.ops)
    x = np.random.default_rng(4).normal(size=(20, 1, 4, 6, 6)).astype(np.float32)
    found = Machine(graph).run({graph.inputs[0]: codes_of(graph, x)})[graph.outputs[0]].reshape(20, -1)
    wanted = np.rint(oracle(path, x) / np.float32(0.0731)) + 120 - 128
    assert np.abs(found - wanted).max() <= 1 and (found != wanted).mean() < 0.02


def test_what_is_left_in_floats_is_refused_by_name(tmp_path: Path) -> None:
    def refused(nodes: Nodes, said: str, **constants: Any) -> None:
        with pytest.raises(UserError, match=said) as caught:
            load_graph(one_layer(tmp_path, nodes, **{**CODED, **constants}))
        assert caught.value.field == "model"

    refused([LAYER[0], ("Conv", ["xd", "w"], ["y"], {})], "output is in floats")
    refused([("Conv", ["xd", "w"], ["c"], {}), *END], "its weights are floats", w=drawn(5, 4, 1, 1))
    refused([("Tanh", ["xd"], ["c"], {}), *END], "no kernel for codes")
    refused([LAYER[0], ("Conv", ["x", "w"], ["c"], {}), *END], "in floats")
    refused([*LAYER, END[0], ("DequantizeLinear", ["yq", "s", "z"], ["y"], {})], "scale or zero point is not")
    refused([*LAYER, *END], "not above 0", t=np.float32(0).reshape(()))
    refused([*LAYER, *END], "codes of int32", u=np.int32(0).reshape(()))
    refused([*LAYER, *END], "do not fit in int8", wz=np.full(5, -100, np.int8))
    turned: Nodes = [("DequantizeLinear", ["wq", "ws", "wz"], ["w"], {"axis": 1}), LAYER[1], *END]
    refused(turned, "along the axis 1", ws=np.full(4, 0.01, np.float32), wz=np.zeros(4, np.int8))
    refused(
        [*LAYER, END[0], ("DequantizeLinear", ["yq", "t", "u"], ["q"], {}), ("Add", ["q", "c"], ["y"], {})],
        "floats",
    )


def test_a_float_model_stays_one(tmp_path: Path) -> None:
    assert onnx.load(str(floats(tmp_path))).graph.node
    graph = load_graph(tmp_path / "floats.onnx")
    assert {tensor.dtype for tensor in graph.tensors.values()} == {"f32"}
