"""The bench of Greenformers: its counts hold everywhere, its helpers say what they should."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from haversack.bench import Outcome, Run, Unavailable, find_bench
from haversack.bench.greenformers import counts, speed, spelling


def run(quick: bool = True) -> Run:
    return Run(quick, 1, time.monotonic() + 600)


def test_every_published_count_is_met_to_the_unit() -> None:
    found = counts.counts(run())
    for row in find_bench("38").rows:
        if row.id.startswith("count-"):
            outcome = found[row.id]
            assert isinstance(outcome, Outcome) and row.bar is not None
            assert row.bar.holds(outcome.ours.values[0]), row.id


def test_every_kind_that_is_claimed_is_seen_in_a_minute() -> None:
    bench = find_bench("greenformers")
    assert bench is find_bench("38")
    assert {row.kind for row in bench.rows if row.quick} == {row.kind for row in bench.rows}
    assert sum(measure.quick_seconds for measure in bench.measures if measure.quick) <= 90
    assert sum(measure.seconds for measure in bench.measures) <= 20 * 60


def test_the_crossing_is_where_the_ratio_passes_one() -> None:
    assert speed.meeting({128: 0.5, 512: 2.0}) == pytest.approx(256)
    assert speed.meeting({128: 0.9, 256: 1.0, 512: 2.0}) == pytest.approx(256)
    assert speed.meeting({128: 1.2, 256: 1.3}) == 128
    assert speed.meeting({128: 0.2, 4096: 0.9}) == math.inf


def test_absent_weights_are_a_reason_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HAVERSACK_DATA", raising=False)
    with pytest.raises(Unavailable, match="HAVERSACK_DATA"):
        spelling.spelling(run())


def test_a_tone_is_heard_in_its_band() -> None:
    import numpy as np

    heard = spelling.log_mel(np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000))
    assert heard.shape == (64, 128)
    assert heard.mean() == pytest.approx(0, abs=1e-5)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 66) / 2595) - 1)
    assert abs(edges[int(heard.mean(axis=1).argmax()) + 1] - 1000) < 60


def test_a_round_of_training_is_judged_on_pieces_it_has_not_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The smallest run of the measurement: one seed, one rank, a task of its own that is easily learned."""
    torch = pytest.importorskip("torch")
    from transformers import BertConfig, BertForSequenceClassification

    from haversack.bench.greenformers import accuracy
    from haversack.bench.greenformers.accuracy import RATES, STARTS, Task, scores, tuned

    labels = torch.arange(160) % 2
    tokens = torch.randint(1, 10, (160, 6), generator=torch.Generator().manual_seed(0))
    tokens += 10 * labels[:, None]

    def make(seed: int) -> BertForSequenceClassification:
        torch.manual_seed(seed)
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        return BertForSequenceClassification(
            BertConfig(**shape, intermediate_size=64, vocab_size=20, max_position_embeddings=8)
        )

    task = Task("tokens", (tokens[:100], labels[:100]), (tokens[100:], labels[100:]), make, 6, batch=20)
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path))
    chosen = tuned(task)
    assert chosen.dense in RATES and chosen.design in RATES and chosen.start in STARTS
    monkeypatch.setattr(accuracy, "tune", None)
    assert tuned(task) == chosen, "kept by content"
    inner = task.tuning()
    assert len(inner.train[1]) == 80 and len(inner.held_out[1]) == 20
    assert not {tuple(one) for one in torch.cat([inner.train[0], inner.held_out[0]]).tolist()} - {
        tuple(one) for one in task.train[0].tolist()
    }, "tuning sees training pieces only"
    points, errors = scores(task, (0,), (0.4,), chosen)
    assert {"dense", "dense-more", "design-0.4", "after-0.4", "tuned-0.4", "tuned-0.5"} <= set(points)
    assert points["dense"][0] > 85
    assert errors["svd"] < errors["snmf"] < errors["random"]
