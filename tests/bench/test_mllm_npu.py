"""The bench of mllm-NPU: its bars, and what it counts."""

from __future__ import annotations

import numpy as np
import pytest

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, judge
from haversack.bench.mllm_npu import bench
from haversack.bench.mllm_npu.phone import known_schedules, phone
from haversack.bench.mllm_npu.quality import known_figures


def test_every_bar_of_the_specification_has_a_row() -> None:
    bars = {row.id: (row.bar, row.judged) for row in bench.rows if row.bar is not None}
    assert bars["chunked-float"] == bars["chunked-shadow"] == (Bar("<=", 1e-5), "ours")
    assert bars["ppl-shadow"] == (Bar("<=", 1.02), "ratio")
    assert bars["ppl-absmax"] == bars["ppl-clip"] == (Bar(">=", 1.1), "ratio")
    assert bars["ppl-pruned"] == (Bar("<=", 1.05), "ratio")
    assert bars["graph-count"] == bars["graph-memory"] == (Bar("<=", 0.25), "ratio")
    assert bars["overlap-apart"] == bars["phone-saving"] == (Bar("<=", 0.82), "ratio")
    assert bars["overlap-shared"] == (Bar("<=", 1.0), "ratio")
    assert bars["order-apart"][0] == bars["order-shared"][0] == bars["phone-order"][0] == Bar("<=", 1.03)
    assert {row.kind for row in bench.rows if row.quick} == {"quality", "time", "memory", "bytes"}
    assert bench.number == 36


def test_the_specified_figures_and_schedules_are_reproduced() -> None:
    assert known_schedules() == 1.0
    for found, said, tolerance in known_figures():
        assert found == pytest.approx(said, rel=tolerance + 1e-12)


def test_the_simulated_rows_are_judged() -> None:
    (measure,) = [one for one in bench.measures if one.function is phone]
    outcomes = phone(Run(quick=False, seed=1, deadline=np.inf))
    judged = {row.id: judge(row, outcomes[row.id]) for row in measure.rows}
    assert all(row["holds"] is not False for row in judged.values())
    idle = [
        judged[f"phone-idle-{policy}"]["ours"]["median"] for policy in ("serial", "chunk", "out-of-order")
    ]
    assert 1 > idle[0] > idle[1] > idle[2] > 0
