"""The bench of D2MoE: orders keep to what no order beats, planes are read by the format alone, every bar has
a row, absent data is a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from haversack.bench._harness import Run
from haversack.bench._rows import Unavailable
from haversack.bench.d2moe import _toy, bench, planes, routing, scheduling
from haversack.kernels.nested import pack_base, pack_signs
from haversack.run.residency.d2moe import makespan, schedule

RUN = Run(quick=True, seed=3, deadline=1e9)


def test_orders_hold_their_bars_and_no_order_beats_the_bound() -> None:
    found = scheduling.orders(RUN)
    assert found["hebf-not-worse"].ours.values[0] >= 0.99
    assert found["hebf-bound"].ours.values[0] <= 1.02
    assert found["hebf-balanced"].ratio is not None and found["hebf-balanced"].ratio >= 1.04
    for name in ("hebf-reading", "hebf-computing"):
        ratio = found[name].ratio
        assert ratio is not None and 1.0 <= ratio < 1.02
    rng = np.random.default_rng(1)
    for _ in range(20):
        needs, _ = scheduling.layer(rng)
        for ratio in (0.3, 1.3, 5.0):
            given = scheduling.times(needs, ratio)
            least = scheduling.bound(needs, *given)
            for order in ("hebf", "id-order"):
                assert makespan(schedule(needs, order), needs, *given)[0] >= least * (1 - 1e-9)


def test_times_have_the_ratio_asked_for() -> None:
    needs, exact = scheduling.layer(np.random.default_rng(2))
    assert needs[:, 0].sum() == scheduling.TOKENS * scheduling.TOP == exact.sum()
    load_s, compute_s = scheduling.times(needs, 1.3)
    reading = sum(load_s[plane] for _, plane in np.argwhere(needs))
    assert reading / float((needs * np.array(compute_s)).sum()) == pytest.approx(1.3)


@pytest.mark.parametrize("shape", [(16, 64), (37, 150)])
def test_a_plane_is_decoded_by_its_description(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    ends = rng.random((2, shape[0], -(-shape[1] // 64))).astype(np.float16).astype(np.float32)
    base = pack_base(rng.integers(0, 8, shape), ends[0], ends[1], 3, 64)
    signs = pack_signs(rng.random(shape) < 0.5, ends[0], 64)
    for plane in (base, signs):
        found = planes.decoded(plane.data, *shape, 64, plane.bits, plane.base)
        assert np.array_equal(found, plane.dense())


def test_choices_by_lot_and_by_expert() -> None:
    experts = np.random.default_rng(5).integers(0, 8, (4000, 2)).astype(np.int32)
    levels = routing.Drawn(np.array([0.2, 0.5, 0.3]), 1)(0, None, experts)
    assert np.bincount(levels.reshape(-1)) / levels.size == pytest.approx([0.2, 0.5, 0.3], abs=0.03)
    by_expert = np.arange(16, dtype=np.int32).reshape(2, 8) % 3
    assert np.array_equal(routing.Static(by_expert)(1, None, experts), by_expert[1][experts])


def test_absent_data_is_a_reason_not_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAVERSACK_DATA", str(tmp_path))
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match="not trained yet"):
        _toy.trained(RUN)
    with pytest.raises(Unavailable, match="tiny-shakespeare is not at hand"):
        _toy.edgemoe.text()


def test_every_bar_of_the_specification_has_a_row() -> None:
    rows = {row.id: row for row in bench.rows}
    barred = {"nested", "nested-bytes", "error-falls", "error-top", "hebf-not-worse", "hebf-bound"}
    barred |= {"hebf-balanced", "edgemoe-50", "edgemoe-550", "copies-50", "copies-550"}
    barred |= {"router-static", "router-drawn", "tokens", "expert-bytes", "process-bytes"}
    assert all(rows[name].bar is not None for name in barred)
    told = {"hebf-reading", "hebf-computing", "hebf-raw", "hebf-bubbles", "int8-memory-50", "int4-50"}
    assert told | {"real-size", "perplexity", "router-bytes"} <= set(rows)
