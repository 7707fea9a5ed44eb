"""The bench of TZ-LLM: every bar has its row, and what is computed of measurements is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from haversack.bench import Run, Unavailable
from haversack.bench.tz_llm import _models, bench
from haversack.bench.tz_llm.boards import boards
from haversack.bench.tz_llm.co_driver import co_driver
from haversack.bench.tz_llm.exactness import over_budget, same_logits
from haversack.bench.tz_llm.latency import Speeds, overlapped, r_squared

BARS = {
    "first-token": ("<=", 0.70),
    "in-the-clear": ("<=", 1.3),
    "overlap": (">=", 0.7),
    "multiple-equal": ("<=", 0.65),
    "cache-linear": (">=", 0.9),
    "same-logits": ("==", 1.0),
    "co-driver-open": ("==", 0.0),
    "co-driver-stuck": ("==", 0.0),
    "board-llama-3-8b": ("in", (0.70, 0.92)),
}


def test_every_bar_has_its_row() -> None:
    rows = {row.id: row.bar for row in bench.rows}
    for name, (op, value) in BARS.items():
        bar = rows[name]
        assert bar is not None and (bar.op, bar.value) == (op, value)
    assert {"order", "grain", "cache-falls"} <= set(rows)
    assert {row.kind for row in bench.rows if row.quick} == {"time", "quality", "memory", "bytes"}


def test_simulated_rows_are_measured() -> None:
    run = Run(quick=True, seed=5, deadline=1e12)
    found = boards(run) | co_driver(run)
    assert found["known-schedule"].ours.values == (1.0,)
    assert found["co-driver-open"].ours.values == (0.0,) and "refused" in found["co-driver-open"].note


def test_a_line_and_no_line() -> None:
    assert r_squared([0, 1, 2, 3], [5.0, 4.0, 3.0, 2.0]) == pytest.approx(1.0)
    assert r_squared([0, 1, 2, 3], [5.0, 1.0, 5.0, 1.0]) < 0.5
    assert r_squared([0, 1], [2.0, 1.0]) == 0.0


def test_the_prompt_fits_the_restoration() -> None:
    speed = Speeds({"allocate": 0.1, "read": 0.6, "decrypt": 0.1}, compute=0.4)
    assert speed.length(1.0, lambda tokens: 0.4 * tokens / 256) == 512
    assert speed.length(2.0, lambda tokens: 0.4 * tokens / 256) == 256


def test_the_prompt_fits_though_a_token_costs_more_the_more_there_are() -> None:
    speed = Speeds({"allocate": 0.1, "read": 0.6, "decrypt": 0.1}, compute=0.4)

    def computing(tokens: int) -> float:
        return 0.4 * (0.8 * tokens / 256 + 0.2 * (tokens / 256) ** 2)

    for multiple in (2 / 3, 1.0, 1.5):
        assert computing(speed.length(multiple, computing)) == pytest.approx(0.8 / multiple, rel=0.03)


def test_overlap_is_measured_against_the_bound() -> None:
    stages = {"allocate": 0.0, "read": 2.4, "decrypt": 0.0}
    taken = {"unpipelined": [4.8], "pipelined": [2.5]}
    outcome = overlapped(taken, stages, compute=2.4, note="")
    assert outcome.ours.values[0] == pytest.approx(1.0)


def test_every_way_of_holding_weights_gives_the_same_logits(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}
    monkeypatch.setattr(_models, "CONFIG", _models.CONFIG | small)
    run = Run(quick=False, seed=5, deadline=1e12)
    found = same_logits(run)["same-logits"]
    assert found.ours.values == (1.0,)
    within = over_budget(run)
    assert isinstance(within, Unavailable) and "ram_mib" in str(within)  # its base alone is above two thirds
