"""Published int8 networks: codes recorded of LiteRT, and as C every code that of the Python graph."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from haversack.cli._embed_models import applied_graph
from haversack.embed.build import build, build_graph, load_graph
from haversack.embed.verify import verify
from haversack.models.graph import Machine

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")

MODELS = {
    "models/mlperf-tiny/kws_ref_model.tflite": (2_656_768, 8_640),
    "models/mlperf-tiny/ad01_int8.tflite": (264_192, 768),
    "models/mcu/mcunet-5fps.pkl": (22_613_504, 132_096),
}

LITERT = {
    "pretrainedResnet_quant": "d77cde7093b7505e750f8e37fc151a9466d367179eefd72e0ab37739b494dc8c",
    "kws_ref_model": "d1ebe347b784bcecb5626ebc9f9060e0e8dbc912aa7e594befb646d3641e3e71",
    "vww_96_int8": "a3b5a25871c63095799689eda321424c4b509ae15602577e8a2ac6cf9dfb658b",
    "ad01_int8": "75451d146f32cadcede2057c49e7ee21c2af69546d5e8d6b4c3b0bb09be594f6",
}
"""SHA-256 of what LiteRT's reference kernels (ai-edge-litert 2.3.0, BUILTIN_REF, no delegate) give for 20
inputs drawn by seed 18."""


@pytest.mark.parametrize("name", LITERT)
def test_codes_are_those_recorded_of_litert(name: str, data: Callable[[str], Path]) -> None:
    graph = load_graph(data(f"models/mlperf-tiny/{name}.tflite"))
    shape = graph.tensors[graph.inputs[0]].shape
    x = np.random.default_rng(18).integers(-128, 128, (20, *shape), dtype=np.int8)
    codes = Machine(graph).run({graph.inputs[0]: x})[graph.outputs[0]]
    assert hashlib.sha256(np.ascontiguousarray(codes).tobytes()).hexdigest() == LITERT[name]


@pytest.mark.parametrize("name", MODELS)
def test_a_published_network_is_computed_to_the_bit(
    name: str, data: Callable[[str], Path], tmp_path: Path
) -> None:
    """The products counted are those of the published architecture; every arena is at its lower bound."""
    found = build(data(name), tmp_path, count=1)
    macs, arena = MODELS[name]
    assert found.made.macs == macs
    assert found.made.plan.nbytes == found.made.plan.bound == arena
    done = verify(tmp_path)
    assert done.holds and all(run.largest == 0 for run in done.runs)


def test_a_network_that_learned_keeps_its_head_of_floats(data: Callable[[str], Path], tmp_path: Path) -> None:
    """What the command compiles of a folder of `train apply`, here of a base alone."""
    graph = applied_graph(data("models/mcu/mcunet-5fps.pkl"))
    build_graph(graph, tmp_path, count=1)
    text = (tmp_path / "network.c").read_text(encoding="utf-8")
    assert "typedef float nn_output" in (tmp_path / "network.h").read_text(encoding="utf-8")
    assert "nn_dense_f32(" in text and "nn_conv2d_matmul(" in text
