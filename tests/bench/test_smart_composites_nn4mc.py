"""The bench of system 18: a row for every bar, networks of the published shapes, small runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from haversack.bench import find_bench
from haversack.bench._harness import Run
from haversack.bench._rows import Unavailable
from haversack.bench.reduced_precision_odl._bench import small_cnn
from haversack.bench.smart_composites_nn4mc import compiler, loops, onnx_codes
from haversack.embed.build import load_graph
from haversack.models.graph import Machine
from haversack.models.graph.series import Runner


def test_every_bar_of_the_specification_has_a_row() -> None:
    bars = {row.id: row.bar.value for row in find_bench("18").rows if row.bar is not None}
    assert bars["flash"] == 6.4 and bars["code"] == 30_000
    assert {bars[f"parity-{name}"] for name in ("gru10", "gru7", "lstm", "conv", "published")} == {1e-5}
    assert bars["spring-cubic-sine"] == bars["spring-cubic-steps"] == 0.8
    for shape in ("figure-eight", "circle", "diagonal"):
        assert (bars[f"tendon-{shape}-max"], bars[f"tendon-{shape}-mean"]) == (2.0, 1.0)
        assert bars[f"plate-{shape}-max"] == 1.0
    assert bars["tick-tendon"] == bars["tick-plate"] == 42.0
    for name in ("resnet8", "ds-cnn", "vww", "autoencoder"):
        assert bars[f"litert-{name}"] == bars[f"python-{name}"] == 0
    assert bars["matmul-int8"] == 0.5 and bars["threads-int8"] == 1 / 1.5 and bars["interpreter"] == 0.01
    assert bars["executor-resnet8"] == 1 / 3 and bars["onnx-codes"] == bars["onnx-codes-python"] == 0
    assert bars["arena-mbv2-w0.35"] == 1 and bars["instructions-cortex-m4f-fast"] == (0.8, 1.25)
    assert {"newton-0", "newton-5", "analytic", "leak"} <= {row.id for row in find_bench("18").rows}


def test_networks_have_the_published_shapes() -> None:
    counts = {
        name: sum(values.size for values in graph.constants.values())
        for name, graph in compiler.networks(0).items()
    }
    assert counts["gru10"] == 2433 and counts["gru7"] == 451


def test_a_network_written_as_onnx_computes_the_same_and_in_codes_closely(tmp_path: Path) -> None:
    """In floats to the last digits; quantized by ONNX Runtime's tool, it is near and all in codes."""
    graph = small_cnn(classes=4)
    path = onnx_codes.exported(graph, tmp_path / "floats.onnx")
    x = np.random.default_rng(3).uniform(size=(30, 8, 8, 1)).astype(np.float32)
    wanted = Runner(graph).run(x.astype(float))
    again = load_graph(path)
    found = Runner(again).run(x.reshape(30, *again.tensors["input"].shape).astype(float))
    np.testing.assert_allclose(found.reshape(30, -1), wanted, rtol=1e-6, atol=1e-6)
    coded = load_graph(onnx_codes.quantized(path, x, tmp_path / "codes.onnx"))
    source, goal = (coded.tensors[each].quantization for each in (*coded.inputs, *coded.outputs))
    assert source is not None and goal is not None
    codes = np.clip(np.rint(x / np.float32(source.scale)) + source.zero, -128, 127).astype(np.int8)
    given = {coded.inputs[0]: codes.reshape(30, *coded.tensors[coded.inputs[0]].shape)}
    near = (Machine(coded).run(given)[coded.outputs[0]].reshape(30, -1) - float(goal.zero)) * goal.scale
    assert np.abs(near - wanted).max() < 0.1 * np.abs(wanted).max()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_parity_is_measured_over_sequences(tmp_path: Path) -> None:
    graph = compiler.networks(1)["gru10"]
    assert 0 < compiler.largest_error(graph, tmp_path, 3, 1) < 1e-5


def test_what_is_not_here_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Run(quick=False, seed=0, deadline=0.0)
    monkeypatch.setenv("HAVERSACK_DATA", str(tmp_path))
    for measure in (loops.rigs, compiler.interpreter, compiler.published):
        with pytest.raises(Unavailable):
            measure(run)
