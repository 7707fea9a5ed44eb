"""How query routers are learned: fitted, chosen by cross-validation, calibrated, and held against baselines.

Paper: RouteLLM (Ong et al., 2024), as share/query_routers.py; the order of steps is ours.
What is here: `fit` fits one form; `learn` chooses what it leaves open inside the training set, calibrates the
threshold to a target share on cross-fitted scores and fits the last time on all of it; `report` replays a
router on outcomes that it has not seen, beside random routing, prompt length and the oracle; `halves` repeats
that over random halves, `by_subject` over subjects that the training set does not have.
Cost: a minute for 14,000 queries on one core; logistic regressions by scikit-learn, the rest numpy.
Limits: the matrix factorisation and the ranking take ties as half a win, as RouteLLM does; where most battles
are ties (both right), the classifier is the better form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import MissingExtraError, UserError, not_allowed
from haversack.share._outcomes import Outcomes
from haversack.share._query_features import SHAPE, Features, shape_of, terms_of
from haversack.share.query_routers import (
    FORMS,
    Classifier,
    Length,
    MatrixFactorisation,
    QueryRouter,
    SimilarityRanking,
    factor_delta,
    gain_area,
    recovered,
    replay,
    scores_of,
    sigmoid,
    threshold_for,
)

SYSTEM = 40

F64 = NDArray[np.float64]
FOLDS = 3
AXES = 48
FACTORS = 16
LEAST = 20
"""Fewer outcomes teach nothing."""


@dataclass(frozen=True)
class Choice:
    """What a form leaves open. `label`: weak-wrong or strong-wins; `strength`: of the regularisation's
    inverse; `words`: whether words are used beside the shape."""

    label: str = "weak-wrong"
    strength: float = 0.1
    words: bool = True


CHOICES: dict[str, tuple[Choice, ...]] = {
    "classifier": tuple(
        Choice(label, strength, words)
        for label in ("weak-wrong", "strong-wins")
        for strength, words in ((0.03, False), (0.3, False), (0.03, True), (0.3, True))
    ),
    "matrix-factorisation": (Choice("battle", 0.3), Choice("battle", 3.0)),
    "similarity-ranking": (Choice("battle"),),
    "length": (Choice("none"),),
}


@dataclass(frozen=True)
class Seen:
    """Queries with what routers see of them, computed once."""

    outcomes: Outcomes
    terms: tuple[Counter[int], ...]
    shapes: F64

    @classmethod
    def of(cls, outcomes: Outcomes) -> Seen:
        """Raises UserError for fewer than 20 outcomes."""
        if len(outcomes) < LEAST:
            raise UserError(
                f"{len(outcomes)} outcomes are too few to learn from; give at least {LEAST}.",
                field="outcomes",
                given=len(outcomes),
                nearest=LEAST,
            )
        terms = tuple(terms_of(query) for query in outcomes.queries)
        return cls(outcomes, terms, np.stack([shape_of(query) for query in outcomes.queries]))

    def part(self, index: NDArray[np.int64]) -> Seen:
        """Some of them."""
        return Seen(self.outcomes.part(index), tuple(self.terms[at] for at in index), self.shapes[index])


def fit(form: str, seen: Seen, choice: Choice, seed: int = 0) -> QueryRouter:
    """A router of `form`, fitted to all that is seen. Raises UserError for an unknown form."""
    if form not in FORMS:
        raise not_allowed("form", form, FORMS)
    if form == "length":
        return Length(np.sort([len(query) for query in seen.outcomes.queries]).astype(np.float32))
    features = Features.of(seen.outcomes.queries, seen.terms, seen.shapes)
    if form == "classifier":
        return _classifier(seen, features, choice)
    axes, embedded = _embedded(seen, features, seed)
    wins = 0.5 + 0.5 * (seen.outcomes.strong - seen.outcomes.weak)
    if form == "similarity-ranking":
        length = np.maximum(np.linalg.norm(embedded, axis=1, keepdims=True), 1e-9)
        battles = (embedded / length).astype(np.float32)
        return SimilarityRanking(features, axes, battles, wins.astype(np.float32))
    return _factorised(embedded, wins, features, axes, choice, seed)


def _classifier(seen: Seen, features: Features, choice: Choice) -> Classifier:
    """Logistic regression on terms (three times their length of 1) and the shape (a third of its
    deviation)."""
    linear, sparse = _sklearn("linear_model"), _scipy_sparse()
    outcomes = seen.outcomes
    weak_wrong = outcomes.weak < 0.5
    label = weak_wrong if choice.label == "weak-wrong" else weak_wrong & (outcomes.strong >= 0.5)
    count = len(features.kept)
    if label.all() or not label.any():
        bias = 4.0 if label.all() else -4.0
        return Classifier(features, np.zeros(count, np.float32), np.zeros(SHAPE, np.float32), bias)
    shape = features.shape(seen.shapes) / 3
    wide = sparse.hstack([features.matrix(seen.terms) * 3, shape]).tocsr() if choice.words else shape
    model = linear.LogisticRegression(C=choice.strength, max_iter=300).fit(wide, label)
    weights = model.coef_[0]
    terms = weights[:count] * 3 if choice.words else np.zeros(count)
    shape_weights = weights[-SHAPE:] / 3
    return Classifier(
        features, terms.astype(np.float32), shape_weights.astype(np.float32), float(model.intercept_[0])
    )


def _embedded(seen: Seen, features: Features, seed: int) -> tuple[NDArray[np.float32], F64]:
    """(axes [m, d], embedded [n, d + SHAPE]) as `query_routers.embed` computes it, at once."""
    matrix = features.matrix(seen.terms)
    most = min(AXES, matrix.shape[0] - 1, matrix.shape[1] - 1)
    if most < 2:
        axes = np.zeros((matrix.shape[1], 1), np.float32)
    else:
        reduced = _sklearn("decomposition").TruncatedSVD(most, n_iter=4, random_state=seed).fit(matrix)
        axes = np.ascontiguousarray(reduced.components_.T, np.float32)
    terms = np.asarray(matrix @ axes, np.float64)
    return axes, np.concatenate([terms * 3, features.shape(seen.shapes) / 3], 1)


def _factorised(
    embedded: F64, wins: F64, features: Features, axes: Any, choice: Choice, seed: int
) -> MatrixFactorisation:
    """Adam on the preference loss with weight decay; full batches."""
    rng = np.random.default_rng(seed)
    wide = embedded.shape[1]
    values = {
        "w": rng.normal(0, wide**-0.5, (FACTORS, wide)),
        "models": rng.normal(0, 1, (2, FACTORS)),
        "c": np.ones(FACTORS),
        "bias": np.array(float(np.log((wins.mean() + 1e-3) / (1 - wins.mean() + 1e-3)))),
    }
    decay = 1.0 / (choice.strength * len(embedded))
    first = {name: np.zeros_like(value) for name, value in values.items()}
    second = {name: np.zeros_like(value) for name, value in values.items()}
    for step in range(1, 301):
        gradients = preference_gradients(values, embedded, wins)
        for name, value in values.items():
            gradient = gradients[name] + (decay * value if name == "w" else 0.0)
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            fine = first[name] / (1 - 0.9**step) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
            values[name] = value - 0.02 * fine
    w, models, c = (values[name].astype(np.float32) for name in ("w", "models", "c"))
    return MatrixFactorisation(features, axes, w, models, c, float(values["bias"]))


def preference_gradients(values: dict[str, Any], embedded: F64, wins: F64) -> dict[str, Any]:
    """Gradients of the mean cross entropy of sigmoid(delta_s - delta_w + bias) against `wins`."""
    w, models, c = values["w"], values["models"], values["c"]
    norms = np.linalg.norm(models, axis=1, keepdims=True)
    unit = models / norms
    projected = embedded @ w.T
    difference = factor_delta(models[1], c, projected) - factor_delta(models[0], c, projected)
    error = (sigmoid(difference + values["bias"]) - wins) / len(wins)
    direction = unit[1] - unit[0]
    pulled = error @ projected
    towards = np.stack([-(c * pulled), c * pulled])
    return {
        "w": np.outer(c * direction, error @ embedded),
        "c": direction * pulled,
        "models": (towards - unit * (towards * unit).sum(1, keepdims=True)) / norms,
        "bias": np.array(error.sum()),
    }


@dataclass(frozen=True)
class Learned:
    """A router, its threshold for the target share, what was chosen, and its gain in cross-validation."""

    form: str
    router: QueryRouter
    threshold: float
    choice: Choice
    gain: float


def learn(form: str, seen: Seen, share: float = 0.4, seed: int = 0) -> Learned:
    """Choose, calibrate, fit. Raises UserError for an unknown form and a share outside 0 to 1."""
    if form not in FORMS:
        raise not_allowed("form", form, FORMS)
    if not 0 <= share <= 1:
        raise UserError(f"share={share} is outside 0 to 1.", field="share", given=share)
    folds = np.random.default_rng(seed).permutation(len(seen.outcomes)) % FOLDS
    best: tuple[float, Choice, F64] | None = None
    for choice in CHOICES[form]:
        scores = np.zeros(len(folds))
        for fold in range(FOLDS):
            inside, outside = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            fitted = fit(form, seen.part(inside), choice, seed)
            scores[outside] = _scores(fitted, seen.part(outside))
        gain = gain_area(scores, seen.outcomes.weak, seen.outcomes.strong)
        if best is None or gain > best[0]:
            best = (gain, choice, scores)
    assert best is not None
    gain, choice, scores = best
    return Learned(form, fit(form, seen, choice, seed), threshold_for(scores, share), choice, gain)


def recalibrated(router: QueryRouter, outcomes: Outcomes, share: float) -> float:
    """A threshold for another pair of models or another kind of queries; some 200 queries are enough."""
    return threshold_for(scores_of(router, outcomes.queries), share)


def _scores(router: QueryRouter, seen: Seen) -> F64:
    """`scores_of`, of queries whose terms are at hand."""
    if isinstance(router, Classifier):
        shape = router.features.shape(seen.shapes) @ router.shape
        return np.asarray(
            sigmoid(np.asarray(router.features.matrix(seen.terms) @ router.terms) + shape + router.bias)
        )
    return scores_of(router, seen.outcomes.queries)


def report(router: QueryRouter, seen: Seen, share: float, threshold: float) -> dict[str, float]:
    """How a router does on outcomes that it has not seen: mean outcome at exactly `share` and the recovered
    part of the gap, those of random, prompt length and the oracle beside it, and the share and outcome that
    its own threshold gives."""
    weak, strong = seen.outcomes.weak, seen.outcomes.strong
    scores = _scores(router, seen)
    lengths = np.array([float(len(query)) for query in seen.outcomes.queries])
    sent = scores >= threshold
    oracle = gain_area(strong - weak, weak, strong)
    return {
        "weak": float(weak.mean()),
        "strong": float(strong.mean()),
        "outcome": replay(scores, weak, strong, share),
        "random": float(weak.mean() + share * (strong.mean() - weak.mean())),
        "length": replay(lengths, weak, strong, share),
        "oracle": replay(strong - weak, weak, strong, share),
        "recovered": recovered(scores, weak, strong, share),
        "recovered_length": recovered(lengths, weak, strong, share),
        "area_of_oracle": gain_area(scores, weak, strong) / oracle if oracle > 0 else 0.0,
        "share_by_threshold": float(sent.mean()),
        "outcome_by_threshold": float(np.where(sent, strong, weak).mean()),
    }


def halves(
    form: str, seen: Seen, share: float, seeds: Sequence[int], say: Callable[[str], None] = lambda text: None
) -> list[dict[str, float]]:
    """`report` over random halves: learned on one, replayed on the other."""
    reports = []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(seen.outcomes))
        inside, outside = seen.part(order[: len(order) // 2]), seen.part(order[len(order) // 2 :])
        learned = learn(form, inside, share, seed)
        reports.append(report(learned.router, outside, share, learned.threshold))
        say(f"{form}, half {seed}: {reports[-1]['recovered']:.3f} recovered")
    return reports


def by_subject(form: str, seen: Seen, share: float, seeds: Sequence[int]) -> list[dict[str, float]]:
    """`report` over halves of the subjects: those replayed are not in the training set. Raises UserError when
    fewer than two subjects are told."""
    subjects = sorted(set(seen.outcomes.subjects) - {""})
    if len(subjects) < 2:
        raise UserError(
            "the outcomes tell fewer than two subjects.", field="by", given="subject", nearest="random"
        )
    place = np.array(seen.outcomes.subjects)
    reports = []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(subjects))
        held = [subjects[at] for at in order[: len(order) // 2]]
        outside = np.isin(place, held)
        inside = seen.part(np.flatnonzero(~outside))
        learned = learn(form, inside, share, seed)
        reports.append(report(learned.router, seen.part(np.flatnonzero(outside)), share, learned.threshold))
    return reports


def _sklearn(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise MissingExtraError("haversack share learn", "scikit-learn", "workshop") from error


def _scipy_sparse() -> Any:
    _sklearn("linear_model")
    import scipy.sparse

    return scipy.sparse
