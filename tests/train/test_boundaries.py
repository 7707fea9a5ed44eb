"""Labels of chunk borders against their definition, and a predictor that learns them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.run import Engine
from haversack.run.attention._predictor import BoundaryPredictor, shapes
from haversack.train.boundaries import (
    Lesson,
    Masses,
    Scores,
    boundary_labels,
    every_nth,
    lessons_of,
    scored,
    train_boundary_predictor,
)

CONFIG = {
    "model_type": "gemma2",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "sliding_window": 40,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 8,
    "bos_token_id": None,
    "eos_token_id": 0,
}


def model_of(seed: int = 0) -> Any:
    """A drawn Gemma-2: two key heads, one layer with a window, soft caps."""
    path = Path(__file__).parents[1] / "run" / "conftest.py"
    spec = importlib.util.spec_from_file_location("run_conftest", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MemorySource(dict(CONFIG), module.draw(dict(CONFIG), seed))


def causal(rng: np.random.Generator, n: int, window: int | None = None) -> np.ndarray:
    powers = np.tril(np.exp(2 * rng.standard_normal((n, n))))
    if window is not None:
        powers *= np.arange(n)[:, None] - np.arange(n)[None] < window
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def ratio_of(attention: np.ndarray, i: int, w: int) -> float:
    rows = attention.astype(np.float64)[i + w + 1 :]
    past, future = rows[:, i - w + 1 : i + 1].sum(), rows[:, i + 1 : i + w + 1].sum()
    return float((max(past, future) + 1e-6) / (min(past, future) + 1e-6))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(20, 60),
    window=st.sampled_from([None, 15]),
    w=st.sampled_from([1, 4]),
    cut=st.integers(1, 59),
)
def test_ratios_equal_their_definition(seed: int, n: int, window: int | None, w: int, cut: int) -> None:
    attention = causal(np.random.default_rng(seed), n, window)
    masses, cut = Masses(n, w), min(cut, n - 1)
    masses.add(attention[:cut, :cut], 0)
    masses.add(attention[cut:], cut)
    ratios, valid = masses.ratios()
    assert np.flatnonzero(valid).tolist() == list(range(2 * w, n - 2 * w))
    for i in np.flatnonzero(valid):
        assert ratios[i] == pytest.approx(ratio_of(attention, i, w), rel=1e-3)


def test_uniform_attention_has_no_borders() -> None:
    n = 80
    attention = (np.tri(n) / np.arange(1, n + 1)[:, None]).astype(np.float32)
    masses = Masses(n)
    masses.add(attention, 0)
    ratios, valid = masses.ratios()
    assert np.allclose(ratios[valid], 1, atol=1e-5)
    assert not boundary_labels(attention)[0].any()


def test_a_step_in_what_is_paid_is_a_border() -> None:
    n = 60
    powers = np.tri(n) * np.where(np.arange(n) < 30, 1.0, 5.0)
    labels, _ = boundary_labels((powers / powers.sum(axis=1, keepdims=True)).astype(np.float32))
    assert labels[29] and not labels[:25].any() and not labels[34:].any()


def test_lessons_are_the_models_own_attention() -> None:
    tokens = np.random.default_rng(0).integers(1, 96, 300).astype(np.int32)
    with Engine.open(model_of()) as engine:
        found = lessons_of(engine, tokens)
        cache = engine.cache(300)
        plain, _ = engine.step(tokens, cache=cache)
        again, _ = engine.step(tokens, cache=engine.cache(300))
        assert plain is not None and again is not None and np.array_equal(plain, again)
        keys, _ = cache.layers[1].floats(slice(0, 300))  # type: ignore[union-attr]
    assert len(found) == 2 and found[0].keys.shape == (300, 16)
    assert np.allclose(found[1].keys, keys.transpose(1, 0, 2).reshape(300, 16))
    assert any(lesson.labels.any() for lesson in found)


def test_scores_of_a_known_case() -> None:
    found, labels = np.zeros(10, bool), np.zeros(10, bool)
    found[[1, 2, 3]], labels[[2, 3, 4, 5]] = True, True
    scores = Scores.of(found, labels)
    assert (scores.precision, scores.recall) == (pytest.approx(2 / 3), 0.5)
    assert scores.f1 == pytest.approx(4 / 7)
    assert Scores.of(np.zeros(3, bool), np.zeros(3, bool)).f1 == 0


def test_torch_and_numpy_agree() -> None:
    torch = pytest.importorskip("torch")
    from haversack.train.boundaries_torch import focal_loss, logits_of

    rng = np.random.default_rng(2)
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes(24).items()}
    keys = rng.standard_normal((70, 24)).astype(np.float32)
    theirs = logits_of(
        {name: torch.from_numpy(each) for name, each in tensors.items()}, torch.from_numpy(keys), 4, 4
    )
    ours = BoundaryPredictor(tensors, 4, 4, "").logits(keys)
    assert np.abs(ours - theirs.numpy()).max() <= 1e-4 * np.abs(ours).max()
    loss = focal_loss(torch.tensor([0.0, 0.0]), torch.tensor([True, False]))
    assert float(loss) == pytest.approx((1.3 + 1) / 2 * 0.25 * np.log(2))


def test_a_predictor_learns_borders_that_keys_show() -> None:
    """Keys that change direction at borders: found again in texts that were not seen, far better than by
    distance."""
    pytest.importorskip("torch")
    from haversack.train.boundaries_torch import fit

    rng = np.random.default_rng(3)

    def document() -> list[Lesson]:
        labels = np.zeros(240, bool)
        labels[np.cumsum(rng.integers(9, 30, 20)).clip(0, 239)] = True
        kinds = rng.permutation(20)[np.cumsum(labels) - labels]
        keys = np.eye(20, 16, dtype=np.float32)[kinds] * 2 + 0.3 * rng.standard_normal((240, 16))
        valid = np.zeros(240, bool)
        valid[8:-8] = True
        return [Lesson(keys.astype(np.float32), labels & valid, valid)]

    tensors = fit([document() for _ in range(40)], 16, 4, 4, 8, 3e-3, 0)
    unseen = document() + document()
    predictor = BoundaryPredictor(tensors, 4, 4, "", threshold=0.0)
    assert scored(predictor, unseen).f1 > max(0.35, 2 * every_nth(unseen).f1)


def test_it_is_taught_on_a_models_own_attention() -> None:
    pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    documents = [rng.integers(1, 96, 150).astype(np.int32) for _ in range(9)]
    source = model_of()
    taught = train_boundary_predictor(source, documents, passes=2)
    assert taught.documents == 8 and 0 <= taught.scores.f1 <= 1
    with Engine.open(source) as engine:
        taught.predictor.require(engine.model.source, engine.architecture, "it")
    again = train_boundary_predictor(source, documents, passes=2)
    assert all(
        np.array_equal(each, again.predictor.tensors[name]) for name, each in taught.predictor.tensors.items()
    )


@pytest.mark.parametrize("lengths", [(), (100,), (16, 100), (9000, 9000, 100)])
def test_too_few_documents_are_refused(lengths: tuple[int, ...]) -> None:
    documents = [np.ones(length, np.int32) for length in lengths]
    with pytest.raises(UserError, match="at least 2") as refused:
        train_boundary_predictor(model_of(), documents)
    assert refused.value.field == "calibration"
