"""ONNX networks as graphs and as C: what ONNX Runtime computes, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from haversack.core.errors import DamagedFileError, UserError
from haversack.embed.build import build, load_graph
from haversack.embed.verify import verify
from haversack.models.graph._moves import Permute
from haversack.models.graph.series import Recurrent, Runner

RNG = np.random.default_rng(8)
Nodes = list[tuple[str, list[str], list[str], dict[str, Any]]]


def drawn(*shape: int) -> np.ndarray:
    return (0.4 * RNG.normal(size=shape)).astype(np.float32)


def saved(
    place: Path,
    nodes: Nodes,
    constants: dict[str, np.ndarray],
    inputs: dict[str, list[Any]],
    outputs: tuple[str, ...] = ("y",),
    opset: int = 17,
) -> Path:
    graph = helper.make_graph(
        [
            helper.make_node(kind, reads, writes, f"n{at}", **more)
            for at, (kind, reads, writes, more) in enumerate(nodes)
        ],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    place.write_bytes(model.SerializeToString())
    return place


def agrees(path: Path, rows: int = 3) -> np.ndarray:
    """What ONNX Runtime computes, after the graph has been held against it."""
    graph = load_graph(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in source.shape]
    x = np.random.default_rng(1).normal(size=(rows, *shape)).astype(np.float32)
    wanted = np.stack([session.run(None, {source.name: each})[0].reshape(-1) for each in x])
    found = Runner(graph).run(x.reshape(rows, *graph.tensors["input"].shape).astype(float))
    np.testing.assert_allclose(found.reshape(rows, -1), wanted, atol=2e-5, rtol=1e-5)
    return wanted


def picture(place: Path) -> Path:
    """Convolutions with all that exporters put around them, a gate for each channel, two ways that meet."""
    nodes: Nodes = [
        ("Sub", ["x", "mean"], ["x0"], {}),
        ("Div", ["x0", "spread"], ["x1"], {}),
        ("Pad", ["x1", "pads"], ["x2"], {}),
        ("Conv", ["x2", "w1", "b1"], ["c1"], {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
        ("BatchNormalization", ["c1", "gain", "shift", "mu", "var"], ["n1"], {}),
        ("Relu", ["n1"], ["r1"], {}),
        ("Conv", ["r1", "w2"], ["c2"], {"group": 6, "auto_pad": "SAME_LOWER"}),
        ("Clip", ["c2", "zero", "six"], ["r2"], {}),
        ("GlobalAveragePool", ["r2"], ["p"], {}),
        ("Conv", ["p", "w3"], ["s"], {}),
        ("HardSigmoid", ["s"], ["gate"], {"alpha": 1 / 6, "beta": 0.5}),
        ("Mul", ["gate", "r2"], ["g"], {}),
        ("Add", ["r1", "g"], ["a"], {}),
        ("MaxPool", ["a"], ["m"], {"kernel_shape": [2, 2], "strides": [1, 1]}),
        ("HardSwish", ["m"], ["h"], {}),
        ("AveragePool", ["h"], ["v"], {"kernel_shape": [2, 1], "strides": [2, 1], "pads": [1, 0, 0, 0]}),
        ("Flatten", ["v"], ["f"], {"axis": 1}),
        ("Gemm", ["f", "w4", "b4"], ["d"], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
        ("Softmax", ["d"], ["y"], {"axis": -1}),
    ]
    constants = {
        "mean": drawn(3, 1, 1),
        "spread": np.float32(2.0).reshape(()),
        "pads": np.array([0, 0, 1, 0, 0, 0, 0, 1], np.int64),
        "w1": drawn(6, 3, 3, 2),
        "b1": drawn(6),
        "gain": drawn(6),
        "shift": drawn(6),
        "mu": drawn(6),
        "var": np.abs(drawn(6)) + 0.1,
        "w2": drawn(6, 1, 3, 3),
        "w3": drawn(6, 6, 1, 1),
        "zero": np.float32(0).reshape(()),
        "six": np.float32(6).reshape(()),
        "w4": drawn(5, 36),
        "b4": drawn(5),
    }
    return saved(place / "picture.onnx", nodes, constants, {"x": ["batch", 3, 8, 7]})


def series(place: Path, cell: str = "GRU", **more: Any) -> Path:
    """A convolution in time, a recurrent layer as torch exports it, its last step, two dense layers."""
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[cell]
    nodes: Nodes = [
        ("Conv", ["x", "w1", "b1"], ["c"], {"kernel_shape": [3], "pads": [2, 0], "strides": [2]}),
        ("Transpose", ["c"], ["t"], {"perm": [2, 0, 1]}),
        (cell, ["t", "w", "r", "b"], ["ys"], {"hidden_size": 4, **more}),
        ("Squeeze", ["ys", "one"], ["q"], {}),
        ("Transpose", ["q"], ["rows"], {"perm": [1, 0, 2]}),
        ("MatMul", ["rows", "w2"], ["z"], {}),
        ("Add", ["z", "b2"], ["z2"], {}),
        ("Tanh", ["z2"], ["z3"], {}),
        ("Gather", ["z3", "last"], ["e"], {"axis": 1}),
        ("Gemm", ["e", "w3"], ["y"], {}),
    ]
    constants = {
        "w1": drawn(5, 3, 3),
        "b1": drawn(5),
        "w": drawn(1, gates * 4, 5),
        "r": drawn(1, gates * 4, 4),
        "b": drawn(1, gates * 8),
        "one": np.array([1], np.int64),
        "w2": drawn(4, 6),
        "b2": drawn(6),
        "last": np.array(-1, np.int64),
        "w3": drawn(6, 2),
    }
    return saved(place / f"{cell}.onnx", nodes, constants, {"x": [1, 3, 9]})


def test_pictures_agree_with_onnx_runtime_and_as_c(tmp_path: Path) -> None:
    """Flattened places before channels cost no permutation: the dense layer's columns are turned."""
    path = picture(tmp_path)
    assert np.ptp(agrees(path)) > 0.01
    graph = load_graph(path)
    assert sum(isinstance(op, Permute) for op in graph.ops) == 1  # the input's
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    build(path, tmp_path / "c")
    assert verify(tmp_path / "c").holds


@pytest.mark.parametrize(
    ("cell", "more"),
    [("GRU", {"linear_before_reset": 1}), ("GRU", {}), ("LSTM", {}), ("RNN", {"activations": ["Relu"]})],
)
def test_series_agree_with_onnx_runtime_and_as_c(cell: str, more: dict[str, Any], tmp_path: Path) -> None:
    path = series(tmp_path, cell, **more)
    agrees(path)
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    build(path, tmp_path / "c")
    assert verify(tmp_path / "c").holds


def test_a_state_that_goes_in_and_out_is_carried(tmp_path: Path) -> None:
    nodes: Nodes = [("LSTM", ["x", "w", "r", "", "", "h", "c"], ["ys", "h2", "c2"], {"hidden_size": 4})]
    constants = {"w": drawn(1, 16, 5), "r": drawn(1, 16, 4)}
    inputs = {"x": [1, 1, 5], "h": [1, 1, 4], "c": [1, 1, 4]}
    path = saved(tmp_path / "s.onnx", nodes, constants, inputs, ("ys", "h2", "c2"))
    graph = load_graph(path)
    assert [op.carry for op in graph.ops if isinstance(op, Recurrent)] == [True]
    session, runner = onnxruntime.InferenceSession(str(path)), Runner(graph)
    h = c = np.zeros((1, 1, 4), np.float32)
    for _ in range(4):
        x = drawn(1, 1, 5)
        y, h, c = session.run(None, {"x": x, "h": h, "c": c})
        np.testing.assert_allclose(runner.run(x.astype(float)).reshape(-1), y.reshape(-1), atol=1e-5)


@pytest.mark.parametrize("opset", [11, 17])
def test_axes_of_a_softmax_and_parts_of_a_value(opset: int, tmp_path: Path) -> None:
    nodes: Nodes = [
        ("Slice", ["x", "from", "to", "axis"], ["s"], {}),
        ("Softmax", ["s"], ["a"], {"axis": 1}),
        ("Reshape", ["a", "shape"], ["b"], {}),
        ("ReduceMean", ["b"], ["r"], {"axes": [1], "keepdims": 0}),
        ("Exp", ["r"], ["e"], {}),
        ("Mul", ["e", "two"], ["y"], {}),
    ]
    constants = {
        "from": np.array([-4], np.int64),
        "to": np.array([99], np.int64),
        "axis": np.array([2], np.int64),
        "shape": np.array([3, -1, 4], np.int64),
        "two": drawn(1, 4),
    }
    agrees(saved(tmp_path / "p.onnx", nodes, constants, {"x": [1, 3, 6]}, opset=opset))


@pytest.mark.parametrize("name", ["tinyvad_cnn_speech_mel.onnx", "spelling_cnn_mel.onnx"])
def test_a_published_network_agrees_with_onnx_runtime(name: str, data: Callable[[str], Path]) -> None:
    agrees(data(f"models/moonshine-micro/{name}"), rows=1)


ONE: Nodes = [("Relu", ["x"], ["y"], {})]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([("LpPool", ["x"], ["y"], {"kernel_shape": [2, 2]})], r"node n0 is a LpPool, .*supported: Add"),
        ([("Conv", ["x", "w"], ["y"], {"dilations": [2, 2]})], r"node n0 \(Conv\) .*dilations of \[2, 2\]"),
        ([("Conv", ["x", "w2"], ["y"], {"group": 2})], "2 groups for 4 channels"),
        ([("Conv", ["x", "bad"], ["y"], {})], "not finite"),
        ([("Conv", ["x", "x"], ["y"], {})], "its kernel is computed"),
        ([("Add", ["x", "table"], ["y"], {})], "varies along several axes"),
        ([("Reshape", ["x", "odd"], ["y"], {})], "does not become"),
        ([("GRU", ["x", "w", "w"], ["y"], {"hidden_size": 2})], r"n0 \(GRU\)"),
        ([("Relu", ["z"], ["y"], {})], "its input 0 is nothing that was computed"),
        ([("Relu", ["x"], ["z"], {})], "has 1 outputs"),
    ],
)
def test_what_is_not_supported_names_the_node(nodes: Nodes, said: str, tmp_path: Path) -> None:
    constants = {
        "w": drawn(4, 4, 3, 3),
        "w2": drawn(4, 2, 3, 3),
        "bad": np.full((4, 4, 1, 1), np.nan, np.float32),
        "table": drawn(4, 6, 1),
        "odd": np.array([7, -1], np.int64),
    }
    path = saved(tmp_path / "bad.onnx", nodes, constants, {"x": [1, 4, 6, 6]})
    with pytest.raises(UserError, match=said):
        load_graph(path)


@pytest.mark.parametrize("shape", [[1, 3, "height", "width"], [1, 3, None, 4], [], [1, -3, 4]])
def test_sizes_that_are_not_fixed_are_refused(shape: list[Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not all fixed"):
        load_graph(saved(tmp_path / "d.onnx", ONE, {}, {"x": shape}))


def test_several_inputs_and_models_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "two.onnx", [("Add", ["x", "z"], ["y"], {})], {}, {"x": [1, 3], "z": [1, 3]})
    with pytest.raises(UserError, match="has 2 inputs"):
        load_graph(path)
    model = onnx.load(saved(tmp_path / "far.onnx", ONE, {"w": drawn(2, 2)}, {"x": [1, 3]}))
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    (tmp_path / "far.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="lies in another file"):
        load_graph(tmp_path / "far.onnx")
    model = onnx.load(saved(tmp_path / "own.onnx", ONE, {}, {"x": [1, 3]}))
    model.graph.node[0].domain = "com.someone"
    (tmp_path / "own.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"a Relu of com\.someone"):
        load_graph(tmp_path / "own.onnx")


def test_damaged_files_end_in_a_sentence(tmp_path: Path) -> None:
    """Cut at many places and with bytes turned: a user's error, never anything else."""
    whole = picture(tmp_path).read_bytes()
    rng, place = np.random.default_rng(5), tmp_path / "bad.onnx"
    refused = 0
    for at in range(120):
        if at < 40:
            changed = bytearray(whole[: len(whole) * at // 40])
        else:
            changed = bytearray(whole)
            for where in rng.integers(0, len(whole), 6):
                changed[where] = rng.integers(256)
        place.write_bytes(changed)
        try:
            load_graph(place)
        except UserError:
            refused += 1
    assert refused > 60
    with pytest.raises(DamagedFileError):
        place.write_bytes(b"\xff" * 100)
        load_graph(place)
    huge: Nodes = [("ConstantOfShape", ["shape"], ["k"], {}), ("Add", ["x", "k"], ["y"], {})]
    with pytest.raises(UserError, match="numbers"):
        load_graph(saved(place, huge, {"shape": np.array([1 << 20, 1 << 20], np.int64)}, {"x": [1, 3]}))
