"""The bench of ZeroQAT: its model is the bundled one, its sides do not mix, and every bar has a row."""

import numpy as np
import pytest

from haversack.bench._find import find_bench
from haversack.bench._harness import Run
from haversack.bench._rows import Unavailable
from haversack.bench.zeroqat import published
from haversack.bench.zeroqat._models import outlier_folder, scored_rows
from haversack.bench.zeroqat.fine_tuning import WORDS, pieces, task_of
from haversack.models._bundled import bundled_names

if "code-draft" not in bundled_names():
    pytest.skip("the bundled model `code-draft` is not installed", allow_module_level=True)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_every_bar_has_a_row() -> None:
    rows = {row.id: row for row in find_bench("24").rows}
    bars = {
        "w4a4-smoothquant": 0.9999,
        "w4a4-reconstruction": 0.9999,
        "w4a4-zeroqat": 0.95,
        "w2a16-reconstruction": 0.9999,
        "w2a16-zeroqat": 0.95,
        "w4a4-no-smoothing": 10.0,
        "table-reconstruction": 10.0,
        "light-code": 1.3,
        "light-medium": 1.3,
        "light-adam-medium": 0.35,
        "full-batch": (0.97, 1.03),
        "signs": 0.2,
        "step-time": 1.0,
    }
    assert {name: rows[name].bar.value for name in bars if rows[name].bar is not None} == bars
    assert {row.kind for row in rows.values() if row.quick} == {"quality", "memory", "time"}


def test_large_models_are_rows_without_a_measurement() -> None:
    found = published.large_models(Run(quick=False, seed=0, deadline=0.0))
    assert len(found) == len(published.FIGURES)
    assert all(isinstance(each, Unavailable) for each in found.values())


def test_outliers_change_what_is_rounded_and_not_what_is_computed() -> None:
    from haversack.bench.zeroqat._models import decoder
    from haversack.run._source import open_model
    from haversack.train.gradient._zeroqat_decoder import Bits, RoundedDecoder

    rows = scored_rows(4)
    plain = RoundedDecoder(open_model("code-draft"), Bits(16, 16), (), {})
    exact, found = plain.loss(rows), decoder(outlier_folder(), Bits(16, 16)).loss(rows)
    assert found == pytest.approx(exact, rel=1e-4)
    assert decoder(outlier_folder(), Bits(16, 4), clipped=False).loss(rows) > exact + 0.5


def test_rows_are_learned_from_or_judged_on() -> None:
    learned, judged = pieces("calibration", 40, 0), pieces("evaluation", 40, 0)
    assert all(text.count(f"import {word}") == 1 for text, word in learned + judged)
    assert not {text for text, _ in learned} & {text for text, _ in judged}
    task, judged_task = task_of(0)
    counts = np.bincount([one.label for one in judged_task.kept])
    assert len(counts) == len(WORDS) and counts.min() == counts.max()
    assert not {one.prompt.tobytes() for one in task.learned} & {one.prompt.tobytes() for one in task.kept}
