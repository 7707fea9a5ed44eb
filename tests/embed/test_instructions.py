"""The model of instructions: fitted exactly where it is exact, near what boards count where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.embed.test_strips import network

from haversack.core.errors import UserError
from haversack.embed.build import build_graph
from haversack.embed.instructions import KINDS, Counted, calibration, counted, fit, fitted, predicted, work
from haversack.embed.targets import TARGETS
from haversack.embed.verify import verify
from haversack.models.graph import Machine

CORES = ("cortex-m4f", "cortex-m7", "riscv32")


def test_a_kernel_that_follows_the_model_is_fitted_exactly() -> None:
    shapes = [(100, 9, 4), (640, 64, 64), (50, 25, 1), (999, 3, 30)]
    rows = [Counted("conv2d", a, b, c, 7 * a + 11 * b + 40 * c) for a, b, c in shapes]
    np.testing.assert_allclose(fit(rows), (7, 11, 40), rtol=1e-9)
    np.testing.assert_allclose(fit([Counted("add", 0, 0, n, 12 * n) for n in (5, 70)]), (0, 0, 12), rtol=1e-9)


def test_no_cost_is_below_zero() -> None:
    rows = [Counted("dense", 100, 0, 10, 1000), Counted("dense", 100, 0, 40, 700)]
    assert min(fit(rows)) >= 0
    assert all(
        min(cost) >= 0 for kinds in fitted().values() for costs in kinds.values() for cost in costs.values()
    )


def test_the_model_has_every_kernel_of_every_core() -> None:
    assert set(fitted()) == set(CORES) == {goal.counts_as for goal in TARGETS.values()} - {""}
    for core in CORES:
        assert set(fitted()[core]) == set(KINDS)
        for kind in KINDS:
            names = {work(calibration(kind), op, "direct")[0] for op in calibration(kind).ops}
            fast = {"conv2d_matmul", "depthwise_blocked", "dense_matmul"}
            assert set(fitted()[core][kind]) == names | fast


@pytest.mark.parametrize("kind", KINDS)
def test_the_calibration_network_is_one_that_runs(kind: str) -> None:
    graph = calibration(kind)
    x = np.zeros((1, 12, 12, 3), np.float32 if kind == "float" else np.int8)
    assert Machine(graph).run({"x": x})[graph.outputs[0]].shape == (1, 10)


@pytest.mark.parametrize("kernels", ["direct", "fast"])
@pytest.mark.parametrize("core", CORES)
def test_the_model_is_near_what_the_board_counts(core: str, kernels: str, tmp_path: Path) -> None:
    """Of a network that it was not fitted to; the count is of the whole pass, copies included."""
    if (reason := TARGETS[core].missing()) is not None:
        pytest.skip(reason)
    built = build_graph(network("int8"), tmp_path, TARGETS[core], kernels=kernels, count=1)
    guess = predicted(built.made, TARGETS[core])
    found = verify(tmp_path)
    assert found.holds and found.report["instructions"] == guess
    run = found.runs[-1]
    assert run.instructions is not None and guess is not None
    assert 0.75 < guess / run.instructions < 1.33
    assert all(each.instructions is None for each in found.runs[:-1])


def test_a_board_counts_the_same_twice() -> None:
    goal = TARGETS["riscv32"]
    if (reason := goal.missing()) is not None:
        pytest.skip(reason)
    again = [counted(goal, ["float"])["float"] for _ in range(2)]
    assert again[0] == again[1]
    near = fitted()["riscv32"]["float"]
    assert all(abs(row.by(near[row.kernel]) / row.instructions - 1) < 0.5 for row in again[0])


def test_this_machine_counts_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="counts no instructions"):
        counted(TARGETS["host"])
    assert build_graph(network("int8"), tmp_path, count=1).record()["instructions"] is None
