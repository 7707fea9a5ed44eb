"""Query routers: the published equations, learning from outcomes, files that are checked."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.core._datasets import local_path
from haversack.core.errors import DamagedFileError, UserError
from haversack.share._outcomes import Outcomes, read_outcomes
from haversack.share._query_features import SHAPE, Features, shape_of, terms_of
from haversack.share._router_files import load_router, read_router, save_router
from haversack.share._routing import Asked
from haversack.share.learning_routers import (
    CHOICES,
    Seen,
    by_subject,
    fit,
    learn,
    preference_gradients,
    recalibrated,
    report,
)
from haversack.share.query_routers import (
    FORMS,
    battle_weights,
    bradley_terry,
    factor_delta,
    factor_p,
    gain_area,
    recovered,
    replay,
    scores_of,
    sigmoid,
    tensors_of,
    threshold_for,
)

HARD = ("median of the sorted list", "prove that the number is prime")
EASY = ("first letter of the longest word", "colour of the evening sky in june")


def made(count: int, seed: int = 0) -> Outcomes:
    """Outcomes whose weak model fails hard queries."""
    rng = np.random.default_rng(seed)
    hard = rng.random(count) < 0.5
    texts = tuple(f"{(HARD if one else EASY)[rng.integers(2)]} number {rng.integers(100)}" for one in hard)
    weak = np.where(hard, rng.random(count) < 0.2, rng.random(count) < 0.95).astype(float)
    strong = (rng.random(count) < 0.95).astype(float)
    subjects = tuple(text.split()[0] for text in texts)
    return Outcomes(texts, weak, strong, ("small", "large"), subjects)


def test_the_published_equations() -> None:
    model, c, projected = np.array([3.0, 4.0]), np.array([2.0, 1.0]), np.array([1.0, 2.0])
    assert factor_delta(model, c, projected) == pytest.approx(2 * 0.6 * 1 + 1 * 0.8 * 2)
    both = np.stack([model, -model])
    assert factor_p(both, c, projected, 0.0) == pytest.approx(float(sigmoid(-2 * 2.8)))
    assert factor_p(both * 7, c, projected, 0.0) == pytest.approx(float(sigmoid(-2 * 2.8)))  # P is normalised
    weights = battle_weights(np.array([0.5, 0.25, 0.0]))
    np.testing.assert_allclose(weights, [100.0, 10 * 10**0.5, 10.0])


def test_bradley_terry_finds_the_strengths_that_made_the_battles() -> None:
    rng = np.random.default_rng(0)
    strength = rng.normal(0, 1, 10)
    strength -= strength.mean()
    chance = sigmoid(strength[:, None] - strength[None, :])
    wins = 100_000 * chance * (1 - np.eye(10))
    np.testing.assert_allclose(bradley_terry(wins, 5000), strength, atol=1e-3)
    two = bradley_terry(np.array([[0, 30.0], [70.0, 0]]))
    assert float(sigmoid(two[1] - two[0])) == pytest.approx(70.1 / 100.2)
    assert np.isfinite(bradley_terry(np.array([[0, 0.0], [5.0, 0]]))).all()


def test_gradients_of_the_preference_loss_equal_differences() -> None:
    rng = np.random.default_rng(1)
    q, wins = rng.normal(size=(9, 5)), rng.random(9)
    values: dict[str, Any] = {
        "w": rng.normal(size=(3, 5)),
        "models": rng.normal(size=(2, 3)),
        "c": rng.normal(size=3),
        "bias": np.array(0.3),
    }

    def loss() -> float:
        p = factor_p(values["models"], values["c"], q @ values["w"].T, float(values["bias"]))
        return float(-(wins * np.log(p) + (1 - wins) * np.log(1 - p)).mean())

    found = preference_gradients(values, q, wins)
    for name, value in values.items():
        for place in np.ndindex(value.shape):
            kept = float(value[place])
            value[place] = kept + 1e-6
            above = loss()
            value[place] = kept - 1e-6
            below = loss()
            value[place] = kept
            assert found[name][place] == pytest.approx((above - below) / 2e-6, abs=1e-7), name


def test_replay_and_its_measures() -> None:
    weak, strong = np.array([0.0, 1, 0, 1]), np.array([1.0, 1, 1, 0])
    scores = np.array([0.9, 0.1, 0.8, 0.2])
    assert replay(scores, weak, strong, 0.5) == 1.0
    assert recovered(scores, weak, strong, 0.5) == pytest.approx((1.0 - 0.5) / 0.25)
    assert gain_area(scores, weak, strong) > 0 > gain_area(-scores, weak, strong)
    rng = np.random.default_rng(0)
    values = rng.random(1000)
    for share in (0.0, 0.2, 0.4, 1.0):
        assert (values >= threshold_for(values, share)).mean() == pytest.approx(share, abs=0.002)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "length"])
def test_a_learned_router_tells_hard_from_easy_and_keeps_its_share(form: str, tmp_path: Path) -> None:
    inside, outside = Seen.of(made(300)), Seen.of(made(300, 1))
    learned = learn(form, inside, 0.4)
    found = report(learned.router, outside, 0.4, learned.threshold)
    assert found["outcome"] > found["random"] + 0.08 and found["recovered"] > 0.7
    assert found["recovered"] > found["recovered_length"]
    assert abs(found["share_by_threshold"] - 0.4) < 0.15
    assert 0 <= learned.router.p_cloud(Asked("")) <= 1
    name, tensors, numbers = tensors_of(learned.router)
    path = tmp_path / "r.router"
    save_router(path, {"kind": "query", "form": name, "threshold": learned.threshold, **numbers}, tensors)
    again, threshold, record = load_router(path)
    queries = outside.outcomes.queries[:40]
    np.testing.assert_allclose(scores_of(again, queries), scores_of(learned.router, queries), atol=1e-6)  # type: ignore[arg-type]
    assert threshold == learned.threshold and record["form"] == form


def test_the_same_seed_gives_the_same_router() -> None:
    seen = Seen.of(made(80))
    queries = seen.outcomes.queries
    for form in ("matrix-factorisation", "classifier"):
        choice = CHOICES[form][0]
        np.testing.assert_array_equal(
            scores_of(fit(form, seen, choice, 3), queries), scores_of(fit(form, seen, choice, 3), queries)
        )


def test_held_out_subjects_are_not_learned_from() -> None:
    reports = by_subject("classifier", Seen.of(made(200)), 0.4, (0, 1))
    assert len(reports) == 2 and all(0 <= one["recovered"] <= 1.5 for one in reports)
    plain = made(60)
    with pytest.raises(UserError):
        by_subject("classifier", Seen.of(Outcomes(*list(plain.__dict__.values())[:4], ("",) * 60)), 0.4, (0,))


def test_recalibration_moves_the_threshold_alone() -> None:
    learned = learn("classifier", Seen.of(made(200)), 0.4)
    other = made(200, 5)
    threshold = recalibrated(learned.router, other, 0.2)
    assert (scores_of(learned.router, other.queries) >= threshold).mean() == pytest.approx(0.2, abs=0.05)


def test_a_pair_of_which_one_is_always_right_is_learned_too() -> None:
    some = made(60)
    for weak in (np.zeros(60), np.ones(60)):
        outcomes = Outcomes(some.queries, weak, np.ones(60), some.pair, some.subjects)
        for form in FORMS:
            assert np.isfinite(scores_of(learn(form, Seen.of(outcomes)).router, some.queries)).all()
    with pytest.raises(UserError):
        Seen.of(some.part([0, 1, 2]))


def write_csv(path: Path, rows: list[list[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_outcomes_in_routellms_own_form(tmp_path: Path) -> None:
    """MMLU as RouteLLM publishes it: a file a subject, the prompt and two booleans."""
    head = ["prompt", "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"]
    text = 'Question: "a, b"?\nA. x\nB. y\nAnswer:'
    one = write_csv(tmp_path / "mmlu_abstract_algebra.csv", [head, [text, True, False], ["b", False, True]])
    two = write_csv(tmp_path / "mmlu_virology.csv", [head, ["c", "False", "True"]])
    found = read_outcomes([one, two])
    assert found.subjects == ("abstract_algebra", "abstract_algebra", "virology")
    assert found.pair == (head[1], head[2]) and found.queries[0] == text
    assert found.weak.tolist() == [1.0, 0.0, 0.0] and found.strong.tolist() == [0.0, 1.0, 1.0]
    long = write_csv(tmp_path / "gsm.csv", [[*head, f"{head[1]}_response"], ["q", "True", "True", "text, 1"]])
    assert read_outcomes([long]).weak.tolist() == [1.0]
    lines = tmp_path / "x.jsonl"
    lines.write_text(json.dumps({"query": "q", "a": 0.25, "b": True, "subject": "s", "note": "n"}) + "\n")
    assert read_outcomes([lines]).weak.tolist() == [0.25]
    assert read_outcomes([lines], weak="b").weak.tolist() == [1.0], "named, whoever is right more often"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [["prompt", "a", "b"]],
        [["x", "a", "b"], ["q", "True", "True"]],
        [["prompt", "a"], ["q", "True"]],
        [["prompt", "a", "b", "c"], ["q", "True", "True", "True"]],
        [["prompt", "a", "b"], ["q", "True", "perhaps"]],
        [["prompt", "a", "b"], ["q", "True", "7"]],
    ],
)
def test_files_that_are_no_outcomes(rows: list[list[Any]], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        read_outcomes([write_csv(tmp_path / "x.csv", rows)])


def test_other_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        read_outcomes([tmp_path / "absent.csv"])
    bad = tmp_path / "x.jsonl"
    for data in (b"\xff\xfe", b"[1]\n", b"{\n", b"[" * 100_000):
        bad.write_bytes(data)
        with pytest.raises(UserError):
            read_outcomes([bad])


def test_gsm8k_has_the_published_facts() -> None:
    path = local_path("routellm-gsm8k")
    if path is None:
        pytest.skip("shared data absent: routing/gsm8k_responses.csv")
    found = read_outcomes([path])
    assert len(found) == 1319
    assert (round(found.strong.mean(), 4), round(found.weak.mean(), 4)) == (0.8567, 0.6384)
    assert round(np.maximum(found.strong, found.weak).mean(), 4) == 0.9287
    assert round(((found.strong == 1) & (found.weak == 0)).mean(), 4) == 0.2904


def test_hostile_router_files(tmp_path: Path) -> None:
    learned = fit("matrix-factorisation", Seen.of(made(60)), CHOICES["matrix-factorisation"][0])
    name, tensors, numbers = tensors_of(learned)
    record = {"kind": "query", "form": name, "threshold": 0.5, **numbers}
    path = tmp_path / "r.router"

    def damaged(changed: dict[str, Any], said: dict[str, Any] | None = None) -> None:
        save_router(path, {**record, **(said or {})}, {**tensors, **changed})
        with pytest.raises(DamagedFileError):
            load_router(path)

    damaged({"w": tensors["w"][:, :-1]})
    damaged({"axes": tensors["axes"][:-1]})
    damaged({"kept": tensors["kept"][::-1]})
    damaged({"spread": np.zeros(SHAPE, np.float32)})
    damaged({"mean": tensors["mean"][:-1]})
    damaged({"c": np.full_like(tensors["c"], np.nan)})
    damaged({}, {"form": "magic"})
    damaged({}, {"form": "length"})
    save_router(path, record, tensors)
    whole = path.read_bytes()
    for end in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError):
            read_router(path)
    path.write_bytes(whole.replace(b"haversack.router", b"haversack.nothing", 1))
    with pytest.raises(UserError):
        read_router(path)
    with pytest.raises(ValueError):
        save_router(path, {"kind": "query"}, {})


def test_features_of_strange_texts() -> None:
    for text in ("", " ", "\x00", "🎒" * 50, "1" * 5000, "a,b\n" * 9000, "1.2.3,4"):
        assert np.isfinite(shape_of(text)).all() and shape_of(text).shape == (SHAPE,)
    texts = ["a b a", "a c"]
    features = Features.of(
        texts, [terms_of(text) for text in texts], np.stack([shape_of(text) for text in texts])
    )
    assert len(features.kept) == 1, "terms of one query are left out"
    at, values = features.sparse(terms_of("a a a"))
    assert at.tolist() == [0] and values.tolist() == [1.0]
