"""The bench of LLMs over networks: its tasks are right, its models are cached, MMLU's reader reads its
files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from haversack.bench._rows import Unavailable
from haversack.bench.llms_over_networks import _models as toys
from haversack.bench.llms_over_networks import outcomes
from haversack.bench.llms_over_networks._bench import bench
from haversack.share._outcomes import read_outcomes


def test_every_bar_of_the_specification_has_a_row() -> None:
    wanted = {
        *("v1-over-random", "v1-area", "v2-over-v1", "v6-bytes", "v6-quality", "v8-bytes", "v8-quality"),
        *("h1-vote", "h1-weighted", "h4-evidence", "h4-repeats", "sparse-bytes", "sparse-quality"),
        *("hy-quality", "hy-calls", "l4-budget", "outage-quality", "outage-deadline", "sockets"),
        *("gsm8k-gap-similarity", "gsm8k-over-length-similarity", "mmlu-gap", "mmlu-gap-subjects"),
    }
    assert wanted <= {row.id for row in bench.rows}


def test_values_of_lists() -> None:
    found = {name: toys.value_of(name, [3, 1, 4, 1, 5, 9]) for name in toys.FUNCTIONS}
    assert found == {
        **{"first": 3, "last": 9, "length": 6, "maximum": 9, "minimum": 1, "second": 5},
        **{"median": 3, "range": 8, "distinct": 5, "sum": 3, "repeats": 2},
    }
    texts, answers = toys.lists(50, 0)
    features = toys.list_features(texts)
    assert features.shape == (50, 11 + 77) and (features.sum(1) == 8).all()
    assert ((answers >= 0) & (answers <= 9)).all()


def test_documents_answer_their_questions() -> None:
    text, asked = toys.document(3, 60)
    assert len(text.split("\n")) == 60 and len(asked) == 12
    for question, value in asked:
        assert text.count(value) >= 1 and question.startswith("What is the ")
    assert (
        toys.line_features("What is the flow of pump number one?", "flow of pump one was 1.00 at noon")[3]
        == 3.0
    )


def test_a_drawn_answer_depends_on_its_seed_alone() -> None:
    row = np.array([0.1] * 10)
    assert toys.drawn(row, 0, "q")[0] == "0"
    assert toys.drawn(row, 5, "q") == toys.drawn(row, 5, "q")
    assert len({toys.drawn(row, seed, "q")[0] for seed in range(1, 40)}) > 5


def test_mmlu_is_read_from_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVERSACK_DATA", str(tmp_path))
    with pytest.raises(Unavailable):
        outcomes.mmlu_files()
    folder = tmp_path / "routing" / "mmlu"
    folder.mkdir(parents=True)
    head = ["prompt", "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"]
    for subject in ("anatomy", "world_religions"):
        with (folder / f"mmlu_{subject}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([head, ["Q?\nA. x\nAnswer:", "False", "True"]])
    found = read_outcomes(outcomes.mmlu_files())
    assert found.subjects == ("anatomy", "world_religions") and found.strong.tolist() == [1.0, 1.0]
