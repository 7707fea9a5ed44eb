"""Results over their inputs: no byte is written that is still to be read, and no code changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.embed.test_strips import network
from tests.models.graph.nets import Maker, other_net, residual_net

from haversack.embed._variants import fast, planned
from haversack.embed.build import build_graph, load_graph
from haversack.embed.overlaps import Gap, backwards, gap
from haversack.embed.verify import verify
from haversack.models.graph import Graph
from haversack.models.graph._ir import Add, AveragePool, Clamp, Conv2d, DepthwiseConv2d, MaxPool, Op
from haversack.models.graph.plan import Arena, arena, lifetimes


def windows(op: Op, graph: Graph) -> tuple[int, int, int]:
    """Rows of a window, stride, rows of nothing above."""
    if isinstance(op, DepthwiseConv2d):
        return graph.tensors[op.weight].shape[0], op.stride[0], op.pads[0][0]
    if isinstance(op, Conv2d):
        return graph.tensors[op.weight].shape[1], op.stride[0], op.pads[0][0]
    assert isinstance(op, AveragePool | MaxPool)
    return op.size[0], op.stride[0], op.pads[0][0]


def overwritten(graph: Graph, plan: Arena) -> list[str]:
    """What is read after another tensor was written there: every byte is followed through the whole pass."""
    places, owner = plan.places(), np.full(plan.nbytes, "", object)
    said: list[str] = []

    def rows(name: str, first: int, last: int) -> slice:
        tensor = graph.tensors[name]
        each = tensor.nbytes // tensor.shape[0]
        return slice(places[name][0] + first * each, places[name][0] + last * each)

    def read(name: str, first: int, last: int) -> None:
        if first < last and set(owner[rows(name, first, last)]) != {name}:
            said.append(f"{name}, rows {first} to {last}")

    for name in graph.inputs:
        owner[rows(name, 0, graph.tensors[name].shape[0])] = name
    for op in graph.ops:
        pictures = [name for name in op.reads if name in places]
        y = op.writes[0]
        high = graph.tensors[y].shape[0]
        if isinstance(op, Conv2d | AveragePool | MaxPool):
            order = range(high)
            turned = isinstance(op, Conv2d) and backwards(graph, plan, op)
            tall, stride, above = windows(op, graph)
            for row in reversed(order) if turned else order:
                top = row * stride - above
                owner[rows(y, row, row + 1)] = y  # before the last of what the row needs is read
                read(op.x, max(top, 0), min(top + tall, graph.tensors[op.x].shape[0]))
        elif isinstance(op, Add | Clamp):
            each = graph.tensors[y].nbytes // graph.tensors[y].size
            for at in range(graph.tensors[y].size):
                for name in pictures:
                    start = places[name][0] + at * each
                    if set(owner[start : start + each]) != {name}:
                        said.append(f"{name}, number {at}")
                owner[places[y][0] + at * each : places[y][0] + (at + 1) * each] = y
        else:
            for name in pictures:
                read(name, 0, graph.tensors[name].shape[0])
            owner[rows(y, 0, high)] = y
    for name in graph.outputs:
        read(name, 0, graph.tensors[name].shape[0])
    return said


def chain(seed: int) -> Graph:
    """Windows of many sizes and strides one after the other, wider and narrower by turns."""
    made = Maker(seed, size=13)
    draw = np.random.default_rng(seed)
    for _ in range(7):
        if draw.integers(2):
            made.conv(int(draw.integers(1, 9)), int(draw.choice([1, 3, 5])), int(draw.integers(1, 3)))
        else:
            made.conv(0, int(draw.choice([3, 5])), 1, depthwise=True)
    return Graph(
        "chain", made.tensors, tuple(made.ops), ("x",), (made.at,), made.constants, tuple(made.constants)
    )


NETWORKS: dict[str, Callable[[], Graph]] = {
    "residual": residual_net,
    "other": other_net,
    "strips": network,
    "floats": lambda: network("f32"),
    **{f"chain{seed}": lambda seed=seed: chain(seed) for seed in range(8)},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_overwritten_that_is_still_read(name: str) -> None:
    graph = NETWORKS[name]()
    for choices in ({}, fast(graph)):
        plan = planned(graph, choices)
        assert not overwritten(graph, plan)
        assert plan.bound <= plan.nbytes
        assert all(
            at >= 0 and at + life.nbytes <= plan.nbytes
            for life, at in zip(plan.lives, plan.offsets, strict=True)
        )
    assert planned(graph, {}).nbytes <= arena(lifetimes(graph)).nbytes


def test_the_simulation_sees_a_plan_that_is_too_tight() -> None:
    """One row nearer than the gap allows, at either end."""
    graph = chain(1)
    plan = planned(graph, {})
    moved = 0
    for at, life in enumerate(plan.lives):
        for step in (-4, 4):
            offsets = list(plan.offsets)
            offsets[at] = min(max(offsets[at] + step, 0), plan.nbytes - life.nbytes)
            moved += bool(overwritten(graph, Arena(plan.lives, tuple(offsets), plan.nbytes, 0)))
    assert moved >= len(plan.lives) // 2


def test_the_gap_is_the_least_one() -> None:
    """Of 3 x 3 windows over rows of one size two rows, of single places one."""
    three = [(max(row - 1, 0), min(row + 2, 6)) for row in range(6)]
    assert gap(8, 8, three) == Gap(16, 16)
    assert gap(8, 8, [(row, row + 1) for row in range(6)]) == Gap(8, 8)
    assert gap(8, 8, [(2 * row, 2 * row + 2) for row in range(3)]) == Gap(8, 32)
    assert gap(24, 8, [(row, row + 1) for row in range(4)]) == Gap(72, 8)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize("name", ["residual", "floats", "chain2", "chain5"])
@pytest.mark.parametrize("kernels", ["direct", "fast"])
def test_what_overlaps_computes_the_same(name: str, kernels: str, tmp_path: Path) -> None:
    graph = NETWORKS[name]()
    made = build_graph(graph, tmp_path, kernels=kernels).made
    assert made.plan.nbytes < sum(life.nbytes for life in made.plan.lives)
    assert verify(tmp_path).holds


def test_layers_of_one_size_stay_in_place(data: Callable[[str], Path]) -> None:
    """A chain of layers as large as each other takes one of them and a few rows, rows taken both ways."""
    graph = load_graph(data("models/mlperf-tiny/kws_ref_model.tflite"))
    plan = planned(graph, fast(graph))
    turned = [op.y for op in graph.ops if isinstance(op, Conv2d) and backwards(graph, plan, op)]
    largest = max(life.nbytes for life in plan.lives)
    assert turned and plan.nbytes < 1.35 * largest


def test_rows_that_threads_share_lie_apart() -> None:
    graph = residual_net()
    two, choices = planned(graph, fast(graph), 2), fast(graph)
    places = two.places()
    for op in graph.ops:
        if isinstance(op, Conv2d) and op.y in choices and len(graph.tensors[op.y].shape) == 3:
            (x, size), (y, other) = places[op.x], places[op.y]
            assert x + size <= y or y + other <= x
