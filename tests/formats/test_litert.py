"""LiteRT files: what is in the real ones, and a small one by its own numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.formats.litert_files import made
from tests.models.graph.nets import data

from haversack.formats.litert import is_litert_file, model_of, read_litert
from haversack.models.graph import Machine
from haversack.models.graph.litert import load_litert

# file -> operations, weights (of convolutions and dense layers), input
REAL = {
    "pretrainedResnet": (16, 77_360, (1, 32, 32, 3)),
    "pretrainedResnet_quant": (16, 77_360, (1, 32, 32, 3)),
    "kws_ref_model": (13, 22_016, (1, 49, 10, 1)),
    "vww_96_int8": (31, 208_112, (1, 96, 96, 3)),
    "ad01_int8": (10, 264_192, (1, 640)),
}


@pytest.mark.parametrize("name", REAL)
def test_the_real_files_are_what_their_facts_say(name: str) -> None:
    path = data("models", "mlperf-tiny", f"{name}.tflite")
    assert is_litert_file(path)
    model = read_litert(path)
    ops, weights, shape = REAL[name]
    assert len(model.ops) == ops
    assert model.tensors[model.inputs[0]].shape == shape
    linear = [op for op in model.ops if op.kind in ("conv", "depthwise", "fully-connected")]
    sizes = [model.tensors[op.inputs[1]].data for op in linear]
    assert sum(each.size for each in sizes if each is not None) == weights


def test_a_small_file_says_what_was_written_and_computes_by_hand(tmp_path: Path) -> None:
    model = model_of(made())
    (op,) = model.ops
    assert (op.kind, op.inputs, op.outputs, op.activation) == ("fully-connected", (0, 1, 2), (3,), "relu")
    weight = model.tensors[1]
    assert (weight.name, weight.shape, weight.dtype, weight.zeros) == ("w", (4, 6), "int8", (0,))
    assert weight.scales == pytest.approx((0.01,))
    path = tmp_path / "small.tflite"
    path.write_bytes(made())
    graph = load_litert(path)
    x = np.array([[10, -20, 30, 100, -100, 7]], np.int8)
    total = (x.astype(int) - 3) @ np.arange(24).reshape(4, 6).T + np.arange(4)
    wanted = np.clip(np.round(total * 0.05 * 0.01 / 0.1) - 128, -128, 127)
    assert Machine(graph).run({"input": x})[graph.outputs[0]].tolist() == wanted.tolist()
