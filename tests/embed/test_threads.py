"""Rows shared among threads: the codes of one thread, pass after pass, however threads are held up."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.embed._host import run
from haversack.embed.build import build_graph
from haversack.models.graph import Machine
from haversack.models.graph._ir import Conv2d, Graph, Quantization, Tensor

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")

LAYERS, SIDE, CHANNELS = 4, 17, 8


def chain() -> Graph:
    """3 x 3 convolutions of codes, one after the other; rows that no number of threads divides."""
    rng = np.random.default_rng(11)
    shape = (SIDE, SIDE, CHANNELS)
    tensors = {"y0": Tensor("y0", shape, "int8", Quantization((0.05,), 3))}
    constants: dict[str, Any] = {}
    ops = []
    for number in range(LAYERS):
        weight, bias, x, y = f"w{number}", f"b{number}", f"y{number}", f"y{number + 1}"
        constants[weight] = rng.integers(-127, 128, (CHANNELS, 3, 3, CHANNELS)).astype(np.int8)
        constants[bias] = rng.integers(-99, 99, CHANNELS).astype(np.int32)
        tensors[weight] = Tensor(weight, constants[weight].shape, "int8", Quantization((0.01,)))
        tensors[bias] = Tensor(bias, (CHANNELS,), "int32", Quantization((0.0005,)))
        tensors[y] = Tensor(y, shape, "int8", Quantization((0.3,), -5))
        ops.append(Conv2d(x, weight, bias, y, pads=((1, 1), (1, 1))))
    return Graph("chain", tensors, tuple(ops), ("y0",), (f"y{LAYERS}",), constants, rounding="fixed")


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_every_pass_gives_the_codes_of_one_thread(threads: int, tmp_path: Path) -> None:
    """More threads than cores are held up by the system in every pass."""
    graph = chain()
    build_graph(graph, tmp_path, kernels="fast", threads=threads)
    source = (tmp_path / "network.c").read_text(encoding="utf-8")
    assert source.count("nn_split(nn_conv2d_matmul") == LAYERS
    goal = tmp_path / "network.so"
    run(["gcc", "-std=c99", "-O2", "-shared", "-fPIC", "-pthread", tmp_path / "network.c", "-o", goal, "-lm"])
    library = ctypes.CDLL(str(goal))
    rows = np.random.default_rng(threads).integers(-128, 128, (60, SIDE, SIDE, CHANNELS)).astype(np.int8)
    wanted = Machine(graph).run({"y0": rows})[f"y{LAYERS}"]
    found = np.zeros((SIDE, SIDE, CHANNELS), np.int8)
    for row, codes in zip(rows, wanted, strict=True):
        library.nn_forward(row.ctypes.data_as(ctypes.c_void_p), found.ctypes.data_as(ctypes.c_void_p))
        assert (found == codes).all()
    assert np.unique(wanted).size > 50
