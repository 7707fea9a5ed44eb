"""Real tables: macro F1 with a tenth of the numbers, beside a grown MLP and beside a linear map; the failures
too."""

from __future__ import annotations

from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.cura._bench import Grown, Task, bench, grow
from haversack.models.series.cura_estimators import (
    CuraClassifier,
    CuraRegressor,
    design_for_budget,
    stratified,
)
from haversack.train.cura import macro_f1

NAMES = ("breast-cancer", "wine", "digits")
WIDTHS = (16, 64, 256)


def table(name: str) -> Task:
    """A table that ships with scikit-learn: 70 % of each class to learn from, the rest to test on, scaled."""
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise Unavailable("scikit-learn is not installed; run: pip install 'haversack[workshop]'") from None
    loader: Any = getattr(datasets, f"load_{name.replace('-', '_')}")
    x, y = loader(return_X_y=True)
    kind = None if name == "diabetes" else y
    a, b, c, d = train_test_split(x, y, test_size=0.3, random_state=0, stratify=kind)
    mean, scale = a.mean(0), np.where(a.std(0) > 0, a.std(0), 1)
    if name == "diabetes":
        level, spread = c.mean(), c.std()
        return Task(name, (a - mean) / scale, (c - level) / spread, (b - mean) / scale, (d - level) / spread)
    return Task(name, (a - mean) / scale, c, (b - mean) / scale, d, len(np.unique(y)))


def linear(task: Task) -> tuple[Any, int]:
    """(predictions, numbers) of logistic regression, its strength chosen on the same held-out fifth."""
    from sklearn.linear_model import LogisticRegression

    held = stratified(np.asarray(task.y), 0)
    models = [
        LogisticRegression(C=c, max_iter=2000).fit(task.x[~held], task.y[~held]) for c in (0.01, 0.1, 1, 10)
    ]
    best = max(models, key=lambda one: one.score(task.x[held], task.y[held]))
    return best.predict(task.test_x), best.coef_.size + best.intercept_.size


@bench.measure(
    *[
        row
        for name in NAMES
        for row in (
            Row(
                f"f1-{name}",
                f"{name}: macro F1 less that of the grown MLP, with at most a tenth of its numbers",
                "F1",
                "quality",
                Bar(">=", -0.02),
                judged="ours",
                published="F1 up to 90 %",
            ),
            Row(
                f"numbers-{name}",
                f"{name}: learned numbers over the MLP's",
                "numbers",
                "bytes",
                Bar("<=", 0.1),
            ),
            Row(
                f"linear-{name}",
                f"{name}: numbers of CURA over those of a linear map that does as it does (no gain is "
                "claimed)",
                "numbers",
                "bytes",
            ),
        )
    ],
    Row("diabetes", "diabetes: mean square error over the grown MLP's", "MSE, scaled", "quality"),
    seconds=400,
)
def real(run: Run) -> Outcomes:
    found: dict[str, Outcome] = {}
    for name in NAMES:
        task = table(name)
        best: Grown = min((grow(task, width, 800) for width in WIDTHS), key=lambda one: one.held_out)
        budget = max(best.numbers // 10, 4 * (task.x.shape[1] + 1) + 48 + 5 * task.classes)
        width, blocks = design_for_budget(min(budget, 2000), task.x.shape[1], task.classes)
        model = CuraClassifier(width, blocks, steps=1500).fit(task.x, task.y)
        ours, theirs = macro_f1(task.test_y, model.predict(task.test_x)), macro_f1(task.test_y, best.made)
        count = model.count()["learned"]
        plain, numbers = linear(task)
        note = f"F1 {ours:.3f} with {count} numbers, {theirs:.3f} with {best.numbers}"
        found[f"f1-{name}"] = Outcome.single(ours - theirs, name="CURA - MLP", note=note)
        found[f"numbers-{name}"] = Outcome.single(count, best.numbers, name="CURA", against="MLP", note=note)
        found[f"linear-{name}"] = Outcome.single(
            count,
            numbers,
            name="CURA",
            against="logistic regression",
            note=f"F1 {ours:.3f} and {macro_f1(task.test_y, plain):.3f}: a linear map is not beaten by "
            "much, or at all",
        )
    task = table("diabetes")
    best = min((grow(task, width, 800) for width in WIDTHS), key=lambda one: one.held_out)
    small = CuraRegressor(4, 1, steps=800).fit(task.x, task.y)
    errors = [float(np.mean((made - task.test_y) ** 2)) for made in (small.predict(task.test_x), best.made)]
    note = f"{small.count()['learned']} and {best.numbers} numbers"
    found["diabetes"] = Outcome.single(errors[0], errors[1], name="CURA", against="MLP", note=note)
    return found
