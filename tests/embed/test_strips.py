"""Layers strip by strip: the same codes and floats in less memory, for more products."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.embed.build import build_graph, load_graph
from haversack.embed.verify import verify
from haversack.models.graph import Graph, Machine, Quantization, Tensor
from haversack.models.graph._ir import Add, Conv2d, DepthwiseConv2d
from haversack.models.graph.plan import arena, faults, lifetimes, products
from haversack.models.graph.strips import cuts, in_strips


def network(kind: str = "int8") -> Graph:
    """Three by three windows with strides and zeros around, a depthwise one, a sum of two ways."""
    rng = np.random.default_rng(3)
    codes = Quantization((0.05,), 4) if kind == "int8" else None
    tensors = {"x": Tensor("x", (21, 10, 3), kind, codes)}
    constants = {}

    def weight(name: str, *shape: int) -> str:
        whole = rng.integers(-60, 60, shape).astype(np.int8)
        constants[name] = whole if kind == "int8" else whole.astype(np.float32) / 99
        tensors[name] = Tensor(name, shape, kind, Quantization((0.01,)) if codes else None)
        return name

    def goal(name: str, *shape: int) -> str:
        tensors[name] = Tensor(name, shape, kind, Quantization((0.1,), -7) if codes else None)
        return name

    around = ((1, 1), (1, 1))
    ops = (
        Conv2d(
            "x", weight("w0", 8, 3, 3, 3), None, goal("a", 21, 10, 8), 0 if codes is None else -7, pads=around
        ),
        DepthwiseConv2d("a", weight("w1", 3, 3, 8), None, goal("b", 21, 10, 8), pads=around),
        Add("a", "b", goal("c", 21, 10, 8)),
        Conv2d(
            "c", weight("w2", 6, 3, 3, 8), None, goal("d", 10, 5, 6), stride=(2, 2), pads=((0, 1), (1, 0))
        ),
        Conv2d("d", weight("w3", 4, 1, 1, 6), None, goal("y", 10, 5, 4)),
    )
    return Graph("strips", tensors, ops, ("x",), ("y",), constants, rounding="float")


@pytest.mark.parametrize("kind", ["int8", "f32"])
def test_strips_compute_the_same_whatever_their_count(kind: str) -> None:
    graph = network(kind)
    x = np.random.default_rng(1).integers(-128, 128, (3, 21, 10, 3))
    x = x.astype(np.int8) if kind == "int8" else x.astype(np.float32) / 64
    wanted = Machine(graph).run({"x": x})["y"]
    assert list(cuts(graph)) == [1, 3, 4, 5]
    for stage in cuts(graph):
        for count in (2, 3, 7):
            made = in_strips(graph, stage, count)
            found = Machine(made).run({"x": x})["y"]
            if kind == "int8":
                np.testing.assert_array_equal(found, wanted)
            else:
                np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
            assert products(made)["forward"] >= products(graph)["forward"]
            assert not faults(made, arena(lifetimes(made)))
    with pytest.raises(ValueError, match="strips of"):
        in_strips(graph, 2, 2)


def test_a_network_that_is_too_large_runs_in_strips(tmp_path: Path) -> None:
    graph = network()
    whole = build_graph(graph, tmp_path / "whole", kernels="direct")
    room = 0.7 * whole.made.plan.nbytes / 1024
    done = build_graph(graph, tmp_path / "c", ram_kib=room)
    record = done.record()
    assert record["arena_bytes"] <= room * 1024 and record["strips"]["extra"] > 0
    assert record["macs"] == whole.made.macs + record["strips"]["extra"]
    with pytest.raises(UserError, match="at the peak"):
        build_graph(graph, tmp_path / "no", ram_kib=0.2)
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    assert verify(tmp_path / "c").holds


def test_a_published_network_fits_a_smaller_board(data: Callable[[str], Path], tmp_path: Path) -> None:
    """Half of the memory that the whole pictures of the first layers take."""
    graph = load_graph(data("models/mcu/mcunet-5fps.pkl"))
    done = build_graph(graph, tmp_path, ram_kib=100, count=1)
    assert done.made.plan.nbytes <= 100 * 1024 and done.strips is not None
    x = np.random.default_rng(2).integers(-128, 128, (1, 128, 128, 3)).astype(np.int8)
    name, goal = graph.inputs[0], graph.outputs[0]
    found = Machine(replace(done.made.graph)).run({name: x})[goal]
    np.testing.assert_array_equal(found, Machine(graph).run({name: x})[goal])
