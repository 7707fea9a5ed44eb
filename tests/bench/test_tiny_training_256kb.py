"""The bench of tiny training: its figures hold where the checkpoints are; what its helpers say."""

from __future__ import annotations

import time

import numpy as np
import pytest
from tests.models.graph.nets import data, residual_net

from haversack.bench import Outcome, Run, Unavailable, find_bench
from haversack.bench._rows import judge
from haversack.bench.tiny_training_256kb import _arms, elsewhere, memory, scaling, steady, updates
from haversack.bench.tiny_training_256kb._bench import CONVOLUTIONS, MODELS, PUBLISHED
from haversack.models.graph import load_mcu, split
from haversack.train.parameters.sparse import Scheme


def run(quick: bool = False) -> Run:
    return Run(quick, 1, time.monotonic() + 600)


def test_the_bench_is_that_of_system_23_and_fits_its_time() -> None:
    bench = find_bench("23")
    assert bench is find_bench("tiny-training-256kb")
    kinds = {row.kind for row in bench.rows}
    assert {row.kind for row in bench.rows if row.quick} == kinds == {"quality", "memory", "bytes", "time"}
    assert sum(measure.quick_seconds for measure in bench.measures if measure.quick) <= 60
    assert sum(measure.seconds for measure in bench.measures) <= 35 * 60


def test_every_figure_that_needs_no_training_holds() -> None:
    data("models", "mcu", "mcunet-5fps.pkl")
    rows = {row.id: row for row in find_bench("23").rows}
    found = {**memory.counts(run()), **memory.arenas(run()), **steady.products(run())}
    for name, outcome in found.items():
        assert isinstance(outcome, Outcome), name
        assert judge(rows[name], outcome)["holds"] in (True, None), name
    assert len(found) > 25


def test_absent_files_are_a_reason_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HAVERSACK_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    assert all(isinstance(outcome, Unavailable) for outcome in memory.counts(run()).values())
    with pytest.raises(Unavailable, match="HAVERSACK_DATA"):
        scaling.scaling(run())
    with pytest.raises(Unavailable, match="HAVERSACK_DATA"):
        steady.answers(run())


def test_what_cannot_be_measured_has_a_reason_for_every_row() -> None:
    found = elsewhere.elsewhere(run())
    assert set(found) == {row.id for row in elsewhere.rows()}
    assert all(isinstance(outcome, Unavailable) for outcome in found.values())


@pytest.mark.parametrize("first", _arms.CUTS)
def test_features_are_cut_where_one_tensor_crosses_below_the_layers_that_learn(first: int) -> None:
    graph = load_mcu(data("models", "mcu", "mcunet-5fps.pkl"))
    at = _arms.cut_below(graph, first)
    front, rest = split(graph, at)
    below = len(front.convolutions())
    assert first - 6 <= below <= first
    assert below + len(rest.convolutions()) == 43
    assert _arms.cut_below(graph, 0) == "picture"


def test_rates_rise_and_fall() -> None:
    shares = [_arms.scheduled(epoch) for epoch in np.linspace(0, _arms.EPOCHS, 50)]
    assert 0 < shares[0] < 0.1 and max(shares) == pytest.approx(1, abs=0.01) and shares[-1] < 0.01
    top = int(np.argmax(shares))
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)


def made_task(monkeypatch: pytest.MonkeyPatch) -> _arms.Task:
    """Two classes told apart by their shade, for a network of six convolutions."""
    monkeypatch.setattr(_arms, "EPOCHS", 3)
    monkeypatch.setattr(_arms, "ROWS", 8)
    monkeypatch.setattr(_arms, "CONVS", 6)
    random = np.random.default_rng(0)
    labels = np.arange(48) % 2
    shades = np.where(labels, 50, -60)[:, None, None, None]
    codes = np.clip(random.normal(shades, 20, (48, 8, 8, 3)), -128, 127).astype(np.int8)
    sets = {"tune": slice(0, 32), "validation": slice(32, 48)}
    parts = {name: codes[part] for name, part in sets.items()}
    return _arms.Task(residual_net(1), parts, {name: labels[part] for name, part in sets.items()})


@pytest.mark.parametrize("numbers", ["qas", "plain", "float", "head"])
def test_every_arm_learns_what_is_easy_and_is_tuned_on_its_own_grid(
    numbers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = made_task(monkeypatch)
    arm = _arms.Arm(numbers, numbers, Scheme.last(2, 6), 0.9, (0.003, 0.01))
    found = _arms.tuned(arm, work, (0.03, 0.1), lambda text: None)
    assert found.grid[found.rate, found.head_rate] == max(found.grid.values()) > 0.9
    assert len(found.grid) == 4 and f"{100 * max(found.grid.values()):.1f}" in found.shown()


def test_a_training_that_explodes_counts_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    work = made_task(monkeypatch)
    arm = _arms.Arm("float", "float", Scheme.last(2, 6), 0.9, (1e30,))
    assert _arms.trained(arm, work, "tune", "validation", 1e30, 1e30, 0) == 0.0


def test_the_published_schemes_are_schemes() -> None:
    for model, schemes in PUBLISHED.items():
        for scheme, _ in schemes.values():
            assert scheme.check(CONVOLUTIONS[model])
    assert set(MODELS) == set(PUBLISHED)
    assert updates.SPARSE.scheme == PUBLISHED["mcunet"]["100"][0]
