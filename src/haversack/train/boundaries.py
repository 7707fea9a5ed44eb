"""Boundaries: DHSA's predictor, taught from where a model's own attention changes.

Paper: Xiong et al., "Long-Context Modeling with Dynamic Hierarchical Sparse Attention for On-Device LLMs"
(arXiv 2510.24606, 2025); labels and loss as in its code.
What is here: the model reads documents densely, and for the gap behind every token the attention that later
tokens pay to the w keys before it is held against what they pay to the w keys after it. Where one is at least
twice the other, a chunk begins. The predictor (run/attention/_predictor.py) learns these labels from the keys
of all layers, document by document.
What we changed: attention is summed by column as it is computed, so that labels take length x 2w numbers
instead of length^2. Layers whose gaps are nearly all borders, or nearly none, teach nothing and are left out
of a document (attention that only looks a token back does that). Defaults are for small models and texts:
more passes and a higher rate than the paper's 2 passes at 1e-4. [code] gives the loss; gated pooling and the
convolutional and deeper variants are left out.
Cost: one dense reading of each document, then `passes` of the predictor over it.
Limits: documents up to LONGEST tokens; needs PyTorch (the extra workshop).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import MissingExtraError, UserError
from haversack.kernels import CacheLayer
from haversack.models._architecture import Attention
from haversack.run._engine import Engine
from haversack.run._forward import Forward
from haversack.run._step import Step
from haversack.run.attention._predictor import BoundaryPredictor, fingerprint
from haversack.run.attention.dense import Dense

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

WINDOW = 4
LONGEST = 8192
LEAST_RATIO = 2.0
TELLING = (0.005, 0.9)
"""Shares of borders among a layer's gaps between which it teaches something."""
SMALL = 1e-6
PASSES, RATE = 12, 1e-3
HELD_OUT = 8
"""One document of so many is kept for the report."""
THRESHOLDS = (-2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
"""Of these a predictor gets the one that matches the labels it was taught best."""


class Masses:
    """What the keys of a text are paid by the queries after them, added up row by row of its attention.

    `total` f64 [n] is all of it, `near` f64 [n, 2w] what the key's own query and the 2w - 1 after it pay: the
    rest is what queries beyond any gap's window pay.
    """

    def __init__(self, length: int, window: int = WINDOW) -> None:
        self.window = window
        self.total: F64 = np.zeros(length)
        self.near: F64 = np.zeros((length, 2 * window))

    def add(self, rows: F32, start: int) -> None:
        """Rows f32 [n, start + n] of the attention, averaged over heads, of the queries at `start` and on."""
        n, seen = rows.shape
        self.total[:seen] += rows.sum(axis=0, dtype=np.float64)
        for back in range(2 * self.window):
            queries = np.arange(max(back - start, 0), n)
            self.near[start + queries - back, back] += rows[queries, start + queries - back]

    def ratios(self) -> tuple[F64, Bools]:
        """For the gap behind each token, the larger over the smaller of what its two sides are paid by the
        queries more than w behind it, f64 [n]; and which gaps are at least 2w from both ends, bool [n]."""
        n, w = len(self.total), self.window
        paid = np.cumsum(self.near, axis=1)
        gaps = np.arange(n)
        sides = []
        for keys in (range(1 - w, 1), range(1, w + 1)):
            side = np.zeros(n)
            for offset in keys:
                at = gaps + offset
                inside = (at >= 0) & (at < n)
                far = self.total[at[inside]] - paid[at[inside], w - offset]
                side[inside] += far.clip(0)
            sides.append(side)
        low, high = np.minimum(*sides), np.maximum(*sides)
        return (high + SMALL) / (low + SMALL), (gaps >= 2 * w) & (gaps < n - 2 * w)


def boundary_labels(attention: F32, window: int = WINDOW) -> tuple[Bools, Bools]:
    """Which gaps begin a chunk, and which gaps are judged at all, bool [n] each, from a whole attention f32
    [n, n] averaged over heads."""
    masses = Masses(len(attention), window)
    masses.add(attention, 0)
    ratios, valid = masses.ratios()
    return (ratios >= LEAST_RATIO) & valid, valid


@dataclass(frozen=True)
class Lesson:
    """What one layer of one document teaches: keys f32 [n, channels], labels and judged gaps bool [n]."""

    keys: F32
    labels: Bools
    valid: Bools


@dataclass(frozen=True)
class Scores:
    """How predicted borders match labels: shares of both, their harmonic mean, and the share of the labels'
    500 strongest gaps among the predictor's 500 likeliest."""

    precision: float
    recall: float
    f1: float
    overlap: float = 0.0

    @classmethod
    def of(cls, found: Bools, labels: Bools, overlap: float = 0.0) -> Scores:
        """Of two choices among the same gaps."""
        hits = float((found & labels).sum())
        precision, recall = hits / max(found.sum(), 1), hits / max(labels.sum(), 1)
        both = precision + recall
        return cls(precision, recall, 2 * precision * recall / both if both else 0.0, overlap)


class Watched:
    """Dense attention over a text of `length` tokens that adds up what it pays to each key: `masses`, by the
    name of a layer's key matrix."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.masses: dict[str, Masses] = {}
        self._dense = Dense()

    def attend(self, query: F32, cache: CacheLayer, step: Step, layer: Attention) -> F32:
        """As `Dense.attend`."""
        found = self.masses.setdefault(layer.key.weight, Masses(self.length))
        found.add(attention_rows(query, cache, step, layer), step.start)
        return self._dense.attend(query, cache, step, layer)


def attention_rows(query: F32, cache: CacheLayer, step: Step, layer: Attention) -> F32:
    """The attention of query f32 [n, heads, d], averaged over heads, f32 [n, start + n]."""
    n, end = len(query), step.start + len(query)
    keys, _ = cache.floats(slice(0, end))
    back = np.arange(step.start, end)[:, None] - np.arange(end)[None]
    unseen = back < 0 if layer.window is None else (back < 0) | (back >= layer.window)
    group = layer.heads // layer.key_value_heads
    total = np.zeros((n, end), np.float32)
    for head in range(layer.heads):
        scores = (query[:, head] @ keys[head // group].T) * np.float32(layer.scale)
        if layer.softcap is not None:
            scores = np.float32(layer.softcap) * np.tanh(scores / np.float32(layer.softcap))
        scores[unseen] = -np.inf
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        total += powers / powers.sum(axis=1, keepdims=True)
    return total / np.float32(layer.heads)


def telling(lessons: Sequence[Lesson]) -> list[Lesson]:
    """Those lessons whose gaps are neither nearly all borders nor nearly none."""
    least, most = TELLING
    return [one for one in lessons if least <= one.labels[one.valid].mean() <= most]


def lessons_of(engine: Engine, tokens: I32) -> list[Lesson]:
    """What each layer teaches when the engine's model reads `tokens` i32 [n] densely; layers whose keys have
    another width than the first's are left out."""
    watched = Watched(len(tokens))
    plain = engine.forward
    engine.forward = Forward(engine.architecture, activations=engine.activations, attention=watched)
    try:
        cache = engine.cache(len(tokens), whole=True)
        engine.step(tokens, cache=cache, want="none")
    finally:
        engine.forward = plain
    found: list[Lesson] = []
    for block in engine.architecture.blocks:
        layer, attention = cache.layers[block.index], block.attention
        if layer is None or attention is None:
            continue
        keys, _ = layer.floats(slice(0, len(tokens)))
        flat = np.ascontiguousarray(keys.transpose(1, 0, 2)).reshape(len(tokens), -1)
        ratios, valid = watched.masses[attention.key.weight].ratios()
        if not found or flat.shape[1] == found[0].keys.shape[1]:
            found.append(Lesson(flat, (ratios >= LEAST_RATIO) & valid, valid))
    return found


def scored(predictor: BoundaryPredictor, lessons: Sequence[Lesson]) -> Scores:
    """How the predictor's gaps above its threshold match the labels of `lessons`."""
    logits = [predictor.logits(lesson.keys)[lesson.valid] for lesson in lessons]
    labels = np.concatenate([lesson.labels[lesson.valid] for lesson in lessons])
    overlaps = []
    for each, lesson in zip(logits, lessons, strict=True):
        wanted = np.flatnonzero(lesson.labels[lesson.valid])
        likely = np.argsort(-each, kind="stable")[: min(500, len(wanted))]
        if len(likely):
            overlaps.append(len(np.intersect1d(likely, wanted)) / len(likely))
    return Scores.of(
        np.concatenate(logits) > predictor.threshold, labels, float(np.mean(overlaps)) if overlaps else 0.0
    )


def _best_threshold(predictor: BoundaryPredictor, documents: Sequence[Sequence[Lesson]]) -> float:
    lessons = [lesson for document in documents for lesson in document]
    logits = np.concatenate([predictor.logits(lesson.keys)[lesson.valid] for lesson in lessons])
    labels = np.concatenate([lesson.labels[lesson.valid] for lesson in lessons])
    return max(THRESHOLDS, key=lambda threshold: Scores.of(logits > threshold, labels).f1)


def every_nth(lessons: Sequence[Lesson]) -> Scores:
    """What borders at equal distances reach, as many as there are labels."""
    found, labels = [], []
    for lesson in lessons:
        wanted = lesson.labels[lesson.valid]
        chosen = np.zeros(len(wanted), bool)
        if wanted.any():
            chosen[np.linspace(0, len(wanted) - 1, int(wanted.sum())).round().astype(int)] = True
        found.append(chosen)
        labels.append(wanted)
    return Scores.of(np.concatenate(found), np.concatenate(labels))


@dataclass(frozen=True)
class Taught:
    """A predictor and how it does on documents it did not learn from, beside borders at equal distances."""

    predictor: BoundaryPredictor
    scores: Scores
    baseline: Scores
    documents: int


def train_boundary_predictor(
    model: Any,
    documents: Sequence[I32],
    *,
    window: int = WINDOW,
    heads: int = 4,
    passes: int = PASSES,
    rate: float = RATE,
    seed: int = 0,
    activations: str | None = None,
) -> Taught:
    """A predictor for `model` (what `Engine.open` takes), taught on token documents i32 [n] of 4w to LONGEST
    tokens, one of HELD_OUT kept for its scores.

    Raises MissingExtraError without PyTorch, UserError for documents that are too few, too short or too long.
    """
    usable = [document for document in documents if 4 * window < len(document) <= LONGEST]
    if len(usable) < 2:
        raise UserError(
            f"{len(usable)} of {len(documents)} documents have {4 * window + 1} to {LONGEST} tokens and at "
            "least 2 are needed to teach a boundary predictor; give longer texts with --calibration.",
            field="calibration",
            given=len(usable),
            nearest=2,
        )
    try:
        torch_part = import_module("haversack.train.boundaries_torch")
    except ModuleNotFoundError as error:
        raise MissingExtraError("teaching a boundary predictor", "PyTorch", "workshop") from error
    with Engine.open(model, attention="dense", residency="mapped", activations=activations) as engine:
        taught = [telling(lessons_of(engine, document)) for document in usable]
        known = fingerprint(engine.model.source, engine.architecture)
    taught = [lessons for lessons in taught if lessons]
    if len(taught) < 2:
        raise UserError(
            f"the model's attention shows borders in {len(taught)} of {len(usable)} documents and at least 2 "
            "are needed; give other texts with --calibration.",
            field="calibration",
            given=len(taught),
            nearest=2,
        )
    kept = max(len(taught) // HELD_OUT, 1)
    channels = taught[0][0].keys.shape[1]
    heads = next(count for count in range(min(heads, channels), 0, -1) if channels % count == 0)
    tensors = torch_part.fit(taught[kept:], channels, heads, window, passes, rate, seed)
    predictor = BoundaryPredictor(tensors, heads, window, known)
    predictor = replace(predictor, threshold=_best_threshold(predictor, taught[kept : kept + HELD_OUT]))
    unseen = [lesson for document in taught[:kept] for lesson in document]
    return Taught(predictor, scored(predictor, unseen), every_nth(unseen), len(taught) - kept)
