"""The bench of Hera: rows, one small seed whole, and what rows make of curves that are known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from haversack.bench.hera import _bench, _rows, bench
from haversack.bench.hera._bench import Found, Size, Tasks, choose, experiment
from haversack.bench.hera.household import tasks
from haversack.share._hera_curve import Point, area
from haversack.share._hera_household import Household

SMALL = Size(rollouts=2, rounds=1, random_runs=1)


def small() -> Tasks:
    def houses(first: int, count: int) -> tuple[Household, ...]:
        return tuple(Household(first + at) for at in range(count))

    return Tasks(houses(0, 6), houses(100, 8), houses(200, 4), houses(300, 6))


@pytest.fixture(scope="module")
def found() -> Found:
    return _bench.run_seed(1, SMALL, small(), lambda text: None)


def test_every_router_has_a_curve_over_the_same_tasks(found: Found) -> None:
    named = {"device", "cloud", "random", "hera", "imitation", "outcomes", "entropy", "oracle"}
    assert set(found.curves) == named | set(_bench.TASKWISE)
    assert found.cloud.share == 1 and found.device.share == 0
    for name, points in found.curves.items():
        assert all(0 <= one.share <= 1 and 0 <= one.success <= 1 for one in points), name
    assert found.chosen in found.curves["hera"]
    assert len(found.curves["cascade"]) == 7


def test_a_seed_is_kept_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Found) -> None:
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path))
    monkeypatch.setattr(_bench, "run_seed", lambda *_: found)
    assert experiment("small", 1, SMALL, small, lambda text: None) == found
    monkeypatch.setattr(_bench, "run_seed", lambda *_: pytest.fail("it was kept"))
    assert experiment("small", 1, SMALL, small, lambda text: None) == found


def test_every_declared_row_gets_an_outcome(found: Found) -> None:
    made = _rows.outcomes_of("household", [found], False)
    assert set(made) == {row.id for row in _rows.rows_of("household", True)}
    ids = {row.id for row in bench.rows}
    assert {"overhead", "household-over-imitation", "textworld-success", "household-stages"} <= ids


def test_seeds_and_parts_share_no_house() -> None:
    numbers = [
        env.number  # type: ignore[attr-defined]
        for seed in (20260, 20261)
        for part in vars(tasks(seed, False)).values()
        for env in part
    ]
    assert len(numbers) == len(set(numbers))


def points(*pairs: tuple[float, float, float]) -> list[Point]:
    return [Point(0.5, success, share, calls, 10.0) for share, success, calls in pairs]


def test_the_bar_of_both_stages_by_hand(found: Found) -> None:
    known = dataclasses.replace(
        found,
        curves={
            **found.curves,
            "device": points((0, 0.2, 0)),
            "cloud": points((1, 1.0, 10)),
            "imitation": points((0.5, 0.8, 5)),
            "hera": points((0.4, 0.784, 4), (0.5, 0.8, 5)),
        },
    )
    factor, note = _rows.stages_factor(known)
    assert factor == pytest.approx(0.9 / 0.8)
    assert "share 0.80" in note
    worse = dataclasses.replace(known, curves={**known.curves, "hera": points((0.5, 0.76, 6))})
    assert _rows.stages_factor(worse)[0] < 1


def test_a_threshold_spends_the_share_that_is_allowed() -> None:
    listed = [Point(tau, success, share, 0, 0) for tau, success, share in
              ((0.1, 0.9, 0.8), (0.2, 0.85, 0.5), (0.3, 0.88, 0.4), (0.4, 0.5, 0.1))]  # fmt: skip
    assert choose(listed) == 0.2
    assert choose(listed[2:]) == 0.3
    assert choose(listed[:1]) == 0.1
    assert area(listed) > 0.5
