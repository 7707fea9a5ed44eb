"""Borders that the predictor finds in documents it was not taught on, beside borders at equal distances and
borders drawn at random, as many as there are labels."""

from __future__ import annotations

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.dhsa._bench import bench
from haversack.bench.dhsa._models import TAUGHT_LENGTH, TEST, asking, predictor_file, recall_folder

TEXTS = 6
ROWS = (
    Row(
        "f1",
        "the predictor's F1 is at least twice that of borders at equal distances",
        "F1",
        "quality",
        Bar(">=", 2.0),
        quick=True,
    ),
    Row("f1-random", "the predictor's F1 beside that of borders drawn at random", "F1", "quality"),
    Row("overlap", "share of the likeliest gaps, 500 at most, that are borders", "share", "quality"),
)


@bench.measure(*ROWS, seconds=60, quick_seconds=15)
def borders(run: Run) -> Outcomes:
    from haversack.run._engine import Engine
    from haversack.run.attention._predictor import BoundaryPredictor
    from haversack.train.boundaries import Scores, every_nth, lessons_of, scored, telling

    predictor = BoundaryPredictor.open(predictor_file(run.say))
    texts = asking(TEST, 2 if run.quick else TEXTS, run.seed)
    with Engine.open(recall_folder(run.say)) as engine:
        lessons = [lesson for text in texts for lesson in telling(lessons_of(engine, text.tokens))]
    ours, equal = scored(predictor, lessons), every_nth(lessons)
    labels = np.concatenate([lesson.labels[lesson.valid] for lesson in lessons])
    drawn = np.random.default_rng(run.seed).permutation(labels)
    random = Scores.of(drawn, labels)
    note = (
        f"{len(texts)} documents of {TAUGHT_LENGTH:,} tokens, telling layers; borders: {labels.mean():.1%} "
        f"of the gaps; precision {ours.precision:.3f}, recall {ours.recall:.3f}"
    )
    return {
        "f1": Outcome.single(ours.f1, equal.f1, name="predictor", against="equal distances", note=note),
        "f1-random": Outcome.single(ours.f1, random.f1, name="predictor", against="random", note=note),
        "overlap": Outcome.single(ours.overlap, name="predictor", note=note),
    }
