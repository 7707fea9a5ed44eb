"""The bench of system 18: a row for every bar, networks of the published shapes, small runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from haversack.bench import find_bench
from haversack.bench._harness import Run
from haversack.bench._rows import Unavailable
from haversack.bench.smart_composites_nn4mc import compiler, loops


def test_every_bar_of_the_specification_has_a_row() -> None:
    bars = {row.id: row.bar.value for row in find_bench("18").rows if row.bar is not None}
    assert bars["flash"] == 6.4 and bars["code"] == 30_000
    assert {bars[f"parity-{name}"] for name in ("gru10", "gru7", "lstm", "conv", "published")} == {1e-5}
    assert bars["spring-cubic-sine"] == bars["spring-cubic-steps"] == 0.8
    for shape in ("figure-eight", "circle", "diagonal"):
        assert (bars[f"tendon-{shape}-max"], bars[f"tendon-{shape}-mean"]) == (2.0, 1.0)
        assert bars[f"plate-{shape}-max"] == 1.0
    assert bars["tick-tendon"] == bars["tick-plate"] == 42.0
    assert {"newton-0", "newton-5", "analytic", "leak"} <= {row.id for row in find_bench("18").rows}


def test_networks_have_the_published_shapes() -> None:
    counts = {
        name: sum(values.size for values in graph.constants.values())
        for name, graph in compiler.networks(0).items()
    }
    assert counts["gru10"] == 2433 and counts["gru7"] == 451


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_parity_is_measured_over_sequences(tmp_path: Path) -> None:
    graph = compiler.networks(1)["gru10"]
    assert 0 < compiler.largest_error(graph, tmp_path, 3, 1) < 1e-5


def test_what_is_not_here_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Run(quick=False, seed=0, deadline=0.0)
    monkeypatch.setenv("HAVERSACK_DATA", str(tmp_path))
    for measure in (loops.rigs, compiler.interpreter, compiler.published):
        with pytest.raises(Unavailable):
            measure(run)
