"""The bench of MixLinear: its parts are the standard ones, absent tables are a reason, rows for every bar."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from haversack.bench import Run, Unavailable, find_bench
from haversack.bench.mixlinear import _bench, accuracy
from haversack.models.series import DLinear


def run() -> Run:
    return Run(True, 1, time.monotonic() + 600)


def test_every_table_horizon_and_baseline_has_a_row() -> None:
    bench = find_bench("47")
    assert bench is find_bench("mixlinear")
    ids = {row.id for row in bench.rows}
    for table in ("etth1", "etth2"):
        for horizon in (96, 192, 336, 720):
            assert {f"{table}-{horizon}-{name}" for name in ("sparsetsf", "dlinear", "seasonal-naive")} <= ids
    assert {row.kind for row in bench.rows if row.quick} == {row.kind for row in bench.rows}


def test_an_absent_table_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAVERSACK_DATA", str(tmp_path))
    _bench.fitted.cache_clear()
    _bench.parts.cache_clear()
    with pytest.raises(Unavailable, match=r"ETT-small/ETTh2\.csv"):
        accuracy.measured("ETTh2", 96)(run())


def test_a_table_put_into_the_folder_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In exactly the format of ETTh2: 17,420 rows, seven channels, one an hour."""
    monkeypatch.setenv("HAVERSACK_DATA", str(tmp_path))
    _bench.parts.cache_clear()
    (tmp_path / "series").mkdir()
    start = np.datetime64("2016-07-01T00:00:00")
    lines = ["date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT"]
    for at in range(17420):
        when = str(start + np.timedelta64(at, "h")).replace("T", " ")
        lines.append(when + "".join(f",{at % 24 + channel}.5" for channel in range(7)))
    (tmp_path / "series" / "ETTh2.csv").write_text("\n".join(lines) + "\n")
    found = _bench.parts("ETTh2")
    assert (len(found.train), len(found.valid), len(found.test)) == (8640, 3600, 3600)
    assert found.test[720, 0] == (11520 % 24) + 0.5
    _bench.parts.cache_clear()


def test_another_scale_of_training_changes_no_forecast() -> None:
    """Errors of a forecaster fitted on a piece are those of its own forecasts, scaled by the whole part."""
    random = np.random.default_rng(0)
    values = random.standard_normal((3000, 3)).cumsum(0) * [1, 5, 0.2]
    data = _bench.Parts(values[:1800], values[1080:2400], values[1680:3000])
    found = _bench.fit(DLinear(24), data, values[900:1800])
    scale = data.train.std(0)
    missed = [
        (found.model.predict(data.test[at : at + 720]) - data.test[at + 720 : at + 744]) / scale
        for at in range(len(data.test) - 743)
    ]
    assert found.errors.mse == pytest.approx(np.mean(np.square(missed)), rel=1e-3)
