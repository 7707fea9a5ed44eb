"""V1, query routers: the chance that a strong model is needed, learned from paired outcomes.

Papers: Large Language Models over Networks (arXiv 2605.08626, 2026) names query routing; the forms are those
of RouteLLM (Ong et al., 2024), whose public code gives their equations. What is here, each with its equation
as a function: matrix factorisation, delta_m = c . (P_m/|P_m| * W q) and P(strong) = sigmoid(delta_s -
delta_w), fitted to the preference loss (L2: Bradley-Terry); a classifier, 1 - P(tie or weak wins), fitted to
labels of paired runs (L1); the similarity-weighted ranking, every past battle weighed 10 * 10^(similarity /
largest similarity) and a Bradley-Terry model solved for each query; prompt length alone, the baseline that
any of them must beat. The fourth form, a causal model that is asked, is a node of a network
(share/cascades.py). A threshold is calibrated to a target share of queries on scores that the fitted router
did not see in training (cross-fitting), since scores of its own training set are too sure. What is chosen
(regularisation, label, whether words are used beside the shape) is chosen by cross-validation inside the
training set.
What we changed: the query embedding is TF-IDF of words and pairs, projected by a truncated SVD, with the
query's shape beside it; there is no pretrained encoder in it.
Cost: one query is scored in under a millisecond; the ranking looks at every stored battle.
Limits: a router knows one pair of models (its record names it). On another pair its order may hold and its
threshold does not: recalibrate on some 200 outcomes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError
from haversack.share._query_features import SHAPE, Features, shape_of, terms_of
from haversack.share._routing import Asked

SYSTEM = 40

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

FORMS = ("classifier", "matrix-factorisation", "similarity-ranking", "length")


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(x, np.float64)))


def factor_delta(model: F64, c: F64, projected: F64) -> F64:
    """delta_m [...] = c . (P_m / |P_m| * W q); `projected` is W q [..., k]."""
    delta: F64 = projected @ (c * model / np.linalg.norm(model))
    return delta


def battle_weights(similarity: F64) -> F64:
    """The weight of each past battle for one query: 10 * 10^(similarity / largest similarity)."""
    largest = max(float(similarity.max(initial=0.0)), 1e-9)
    weights: F64 = 10.0 * 10.0 ** (similarity / largest)
    return weights


def bradley_terry(wins: F64, rounds: int = 200) -> F64:
    """Strengths (logarithms, mean 0) of players of whom i beat j wins[i, j] times, fractions allowed; by
    minorisation (Hunter, 2004). A tenth of a win each way keeps them finite."""
    wins = np.asarray(wins, np.float64) + 0.1 * (1 - np.eye(len(wins)))
    played = wins + wins.T
    strength = np.ones(len(wins))
    for _ in range(rounds):
        shares = played / (strength[:, None] + strength[None, :])
        np.fill_diagonal(shares, 0.0)
        fresh = wins.sum(1) / shares.sum(1)
        fresh /= np.exp(np.log(fresh).mean())
        if np.abs(fresh - strength).max() < 1e-10:
            break
        strength = fresh
    logs: F64 = np.log(strength) - np.log(strength).mean()
    return logs


def threshold_for(scores: F64, share: float) -> float:
    """The threshold that sends `share` of queries with these scores to the cloud, as nearly as ties allow."""
    cuts = np.unique(np.append(scores, [0.0, np.nextafter(scores.max(), 2.0)]))
    sent = np.array([(scores >= cut).mean() for cut in cuts])
    return float(cuts[int(np.argmin(np.abs(sent - share)))])


def replay(scores: F64, weak: F64, strong: F64, share: float) -> float:
    """Mean outcome when the `share` of queries with the highest scores get the strong answer."""
    chosen = np.argsort(-scores, kind="stable")[: round(share * len(scores))]
    got = weak.copy()
    got[chosen] = strong[chosen]
    return float(got.mean())


def recovered(scores: F64, weak: F64, strong: F64, share: float) -> float:
    """The part of the gap between weak and strong that routing recovers at `share`; random recovers
    `share`."""
    gap = float(strong.mean() - weak.mean())
    return (replay(scores, weak, strong, share) - float(weak.mean())) / gap if gap else 0.0


def gain_area(scores: F64, weak: F64, strong: F64) -> float:
    """The area between a router's curve of outcome over share and that of random routing."""
    order = np.argsort(-scores, kind="stable")
    curve = weak.mean() + np.cumsum((strong - weak)[order]) / len(order)
    chance = weak.mean() + np.arange(1, len(order) + 1) / len(order) * (strong.mean() - weak.mean())
    return float((curve - chance).mean())


@dataclass(frozen=True)
class Classifier:
    """1 - P(tie or weak wins) by logistic regression: `terms` f32 [m], `shape` f32 [SHAPE], `bias`."""

    features: Features
    terms: F32
    shape: F32
    bias: float
    kind: str = "query"

    def p_cloud(self, asked: Asked) -> float:
        """The chance that the strong model is needed."""
        at, values = self.features.sparse(terms_of(asked.text))
        shape = self.features.shape(shape_of(asked.text))
        return float(sigmoid(values @ self.terms[at] + shape @ self.shape + self.bias))


@dataclass(frozen=True)
class MatrixFactorisation:
    """P(strong) = sigmoid(delta_s - delta_w): `axes` f32 [m, d] embed terms, `w` f32 [k, d + SHAPE], `models`
    f32 [2, k] (weak, strong), `c` f32 [k], `bias`."""

    features: Features
    axes: F32
    w: F32
    models: F32
    c: F32
    bias: float
    kind: str = "query"

    def p_cloud(self, asked: Asked) -> float:
        """The chance that the strong model wins."""
        q = embed(self.features, self.axes, asked.text)
        return float(factor_p(self.models, self.c, self.w @ q, self.bias))


def factor_p(models: Any, c: Any, projected: Any, bias: float) -> Any:
    """sigmoid(delta_s - delta_w + bias)."""
    weak, strong = (factor_delta(one, c, projected) for one in models)
    return sigmoid(strong - weak + bias)


@dataclass(frozen=True)
class SimilarityRanking:
    """A Bradley-Terry model for each query of all past battles weighed by likeness: `battles` f32
    [n, d + SHAPE] of length 1, `wins` f32 [n] (1 strong, 0 weak, 0.5 tie)."""

    features: Features
    axes: F32
    battles: F32
    wins: F32
    kind: str = "query"

    def p_cloud(self, asked: Asked) -> float:
        """The chance that the strong model wins a battle over this query."""
        return self.p_of(embed(self.features, self.axes, asked.text))

    def p_of(self, q: F64) -> float:
        """The same for an embedded query [d + SHAPE]."""
        q = q / max(float(np.linalg.norm(q)), 1e-9)
        weights = battle_weights(self.battles @ q)
        strong, weak = float(weights @ self.wins), float(weights @ (1 - self.wins))
        logs = bradley_terry(np.array([[0.0, weak], [strong, 0.0]]))
        return float(sigmoid(logs[1] - logs[0]))


@dataclass(frozen=True)
class Length:
    """The baseline: longer queries first; `sorted` f32: lengths of the training set in order."""

    lengths: F32
    kind: str = "query"

    def p_cloud(self, asked: Asked) -> float:
        """The share of training queries that are shorter."""
        return float(np.searchsorted(self.lengths, len(asked.text)) / max(len(self.lengths), 1))


QueryRouter = Classifier | MatrixFactorisation | SimilarityRanking | Length


def embed(features: Features, axes: F32, text: str) -> F64:
    """The embedding of a query, f64 [d + SHAPE]: its terms on the axes, its shape a third as long."""
    at, values = features.sparse(terms_of(text))
    terms = values @ axes[at] if len(at) else np.zeros(axes.shape[1])
    return np.concatenate([terms * 3, features.shape(shape_of(text)) / 3])


def tensors_of(router: QueryRouter) -> tuple[str, dict[str, Any], dict[str, float]]:
    """(form, tensors, numbers) as a file keeps them."""
    match router:
        case Classifier():
            kept = {**router.features.tensors(), "terms": router.terms, "shape": router.shape}
            return "classifier", kept, {"bias": router.bias}
        case MatrixFactorisation():
            kept = {**router.features.tensors(), "axes": router.axes, "w": router.w}
            kept |= {"models": router.models, "c": router.c}
            return "matrix-factorisation", kept, {"bias": router.bias}
        case SimilarityRanking():
            kept = {**router.features.tensors(), "axes": router.axes}
            return "similarity-ranking", kept | {"battles": router.battles, "wins": router.wins}, {}
        case Length():
            return "length", {"lengths": router.lengths}, {}


def router_of(record: dict[str, Any], tensors: dict[str, NDArray[Any]], path: Path) -> QueryRouter:
    """The router of a file that was read. Raises DamagedFileError when its tensors do not fit its form."""
    try:
        form = record["form"]
        if form == "length":
            (count,) = tensors["lengths"].shape
            return Length(tensors["lengths"])
        features = Features(tensors["kept"], tensors["idf"], tensors["mean"], tensors["spread"])
        count = len(features.kept)
        if features.idf.shape != (count,) or {features.mean.shape, features.spread.shape} != {(SHAPE,)}:
            raise ValueError("its features do not fit one another")
        if (np.diff(features.kept.astype(np.int64)) <= 0).any() or not (features.spread > 0).all():
            raise ValueError("its features are out of order")
        return _formed(form, features, tensors, float(record.get("bias", 0.0)), count)
    except (KeyError, ValueError, TypeError) as error:
        said = re.sub(r"\s+", " ", str(error))[:120]
        raise DamagedFileError(path, f"its tensors do not fit its form ({said})") from error


def _formed(
    form: str, features: Features, tensors: dict[str, NDArray[Any]], bias: float, count: int
) -> QueryRouter:
    if form == "classifier":
        terms, shape = tensors["terms"], tensors["shape"]
        if terms.shape != (count,) or shape.shape != (SHAPE,):
            raise ValueError("its weights do not fit its features")
        return Classifier(features, terms, shape, bias)
    axes = tensors["axes"]
    wide = axes.shape[1] + SHAPE
    if len(axes) != count:
        raise ValueError("its axes do not fit its features")
    if form == "matrix-factorisation":
        w, models, c = tensors["w"], tensors["models"], tensors["c"]
        if w.shape[1] != wide or models.shape != (2, len(w)) or c.shape != (len(w),):
            raise ValueError("its factors do not fit one another")
        return MatrixFactorisation(features, axes, w, models, c, bias)
    if form == "similarity-ranking":
        battles, wins = tensors["battles"], tensors["wins"]
        if battles.shape[1] != wide or wins.shape != (len(battles),):
            raise ValueError("its battles do not fit one another")
        return SimilarityRanking(features, axes, battles, wins)
    raise ValueError(f"{str(form)[:40]} is no form (allowed {', '.join(FORMS)})")


def scores_of(router: QueryRouter, queries: Sequence[str]) -> F64:
    """The scores of many queries, f64 [n]."""
    return np.array([router.p_cloud(Asked(query)) for query in queries])
