"""The bench of CURA: its baseline learns, its targets are what they say, its rows name every bar."""

from __future__ import annotations

import numpy as np
import pytest

from haversack.bench import find_bench
from haversack.bench.cura import _bench, forecasts

pytest.importorskip("sklearn")
pytest.importorskip("torch")


def test_rows_and_kinds() -> None:
    bench = find_bench("10")
    assert bench is find_bench("cura")
    ids = {row.id for row in bench.rows}
    assert {"targets-at-50x", "without-gate", "without-residual", "without-clip", "f1-digits", "c-us"} <= ids
    assert {row.kind for row in bench.rows if row.quick} == {row.kind for row in bench.rows}


def test_five_targets() -> None:
    found = _bench.targets()
    assert [one.name for one in found] == ["chirp", "friedman-1", "friedman-2", "friedman-3", "spirals"]
    assert all(len(one.x) == len(one.test_x) == 800 for one in found)
    assert set(np.unique(found[4].y)) == {0, 1}


def test_the_mlp_learns() -> None:
    """What CURA is held against is no straw man: it learns a product of two inputs."""
    random = np.random.default_rng(0)
    x = random.standard_normal((300, 2))
    y = x[:, 0] * x[:, 1]
    task = _bench.Task("product", x, y, x, y)
    found = _bench.grow(task, 16, steps=400, restarts=1)
    assert found.numbers == 3 * 16 + 17 * 16 + 17
    assert _bench.error(task, found.made) < 0.05
    sides = (y > 0).astype(np.int64)
    labelled = _bench.Task("sign", x, sides, x, sides, 2)
    assert _bench.error(labelled, _bench.grow(labelled, 16, steps=300, restarts=1).made) < 0.08


def test_windows_to_test_on_begin_behind_those_of_training() -> None:
    values = np.arange(2400.0)
    train, test = forecasts.windows(values)
    assert train[-1].max() < 1600 <= test[0].min()
