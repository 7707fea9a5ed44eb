"""Train CURA on a table: numbers, classes, texts, small pictures or a series, within a budget of numbers.

The network is models/series/cura.py, a reconstruction. A fifth of the rows is the test part (the last rows of
a series), which nothing is fitted to or chosen on; of the rest a fifth chooses among restarts. The largest
network within the budget is taken. All that is stored is counted: learned numbers, fixed ones (means, scales,
rarities of words), bytes."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, UserError, not_allowed, unknown_name
from haversack.formats.series_csv import table_text
from haversack.formats.small_pack import SmallPack
from haversack.models.series import _cura_fronts as fronts
from haversack.models.series.cura import CLIPS, Design
from haversack.models.series.cura_estimators import (
    CuraClassifier,
    CuraRegressor,
    design_for_budget,
    stratified,
)

SYSTEM = 10

F64 = NDArray[np.float64]
TASKS = ("regress", "classify", "text", "image", "forecast")
WINDOW = 48


@dataclass(frozen=True)
class Ask:
    """What to learn: `target` is a column (of a forecast the series itself); `text` the column of texts."""

    task: str
    target: str
    text: str | None = None
    horizon: int = 24
    budget: int = 500
    clip: str = "tanh"
    hashing: bool = False
    steps: int = 2000
    restarts: int = 5
    seed: int = 0


@dataclass
class Learned:
    """A fitted estimator with its front end; `test` is its figure on the test part, `naive` that of no model;
    `x`: the inputs that it was fitted to."""

    ask: Ask
    model: Any
    front: dict[str, Any]
    arrays: dict[str, F64]
    metric: str
    test: float
    naive: float
    stored: int
    seconds: float
    rows: tuple[int, int]
    warnings: list[str] = field(default_factory=list)
    x: F64 | None = None

    def count(self) -> dict[str, int]:
        """Learned, fixed, bytes: everything that the pack holds."""
        found = self.model.count()
        fixed = found["fixed"] + self.stored
        return {"learned": found["learned"], "fixed": fixed, "bytes": 4 * (found["learned"] + fixed)}


def read_rows(path: Path, least: int = 10, text: str | None = None) -> tuple[list[str], list[list[str]]]:
    """(column names, rows of cells) of a table with a header, or of `text` that `path` only names.

    Raises UserError where there are fewer than `least` rows, DamagedFileError for what is no table."""
    text = table_text(path) if text is None else text
    mark = max(",;\t", key=text.partition("\n")[0].count)
    rows = [row for row in csv.reader(text.splitlines(), delimiter=mark) if row]
    if len(rows) <= least:
        raise UserError(
            f"{path} has {max(0, len(rows) - 1)} rows under its header; at least {least} are needed.",
            field="table",
            given=max(0, len(rows) - 1),
            nearest=least,
        )
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise DamagedFileError(
                path, f"row {number} has {len(row)} cells, the first {len(rows[0])}", field="table"
            )
    return [name.strip() for name in rows[0]], rows[1:]


def learn(path: Path, ask: Ask, tell: Callable[[int], None] | None = None) -> Learned:
    """Train on a table. Raises UserError for an unknown task or column, one class, numbers that are missing,
    a budget that no network meets, a horizon longer than half of the series."""
    if ask.task not in TASKS:
        raise not_allowed("task", ask.task, TASKS)
    if ask.clip not in CLIPS:
        raise not_allowed("clip", ask.clip, CLIPS)
    names, rows = read_rows(path)
    if ask.target not in names:
        raise unknown_name("column", ask.target, names, field="target")
    start = time.perf_counter()
    done = _forecast(names, rows, ask, tell) if ask.task == "forecast" else _table(names, rows, ask, tell)
    done.seconds = round(time.perf_counter() - start, 3)
    return done


def _table(names: list[str], rows: list[list[str]], ask: Ask, tell: Any) -> Learned:
    goal = [row[names.index(ask.target)] for row in rows]
    classify = ask.task != "regress"
    codes = np.unique(np.asarray(goal), return_inverse=True)[1] if classify else np.zeros(len(rows), np.int64)
    held = stratified(codes, ask.seed + 1)
    front, arrays, x, stored = _front(names, rows, ask, ~held)
    if classify:
        y: Any = np.asarray(goal)
        outputs = len(np.unique(y))
    else:
        y = np.asarray([_value(cell, ask.target, number) for number, cell in enumerate(goal, 1)])
        outputs = 1
    model = _estimator(classify, x.shape[1], outputs, ask)
    model.fit(x[~held], y[~held], tell=tell)
    made = model.predict(x[held])
    if classify:
        values, counts = np.unique(y[~held], return_counts=True)
        usual = np.full(int(held.sum()), values[counts.argmax()])
        metric, test, naive = "macro F1", macro_f1(y[held], made), macro_f1(y[held], usual)
    else:
        missed = y[held] - made
        metric = "root mean square error"
        test = float(np.sqrt(np.mean(missed**2)))
        naive = float(np.sqrt(np.mean((y[held] - y[~held].mean()) ** 2)))
    return Learned(
        ask,
        model,
        front,
        arrays,
        metric,
        test=test,
        naive=naive,
        stored=stored,
        seconds=0.0,
        rows=(len(y[~held]), len(y[held])),
        x=x[~held],
    )


def _front(
    names: list[str], rows: list[list[str]], ask: Ask, train: NDArray[np.bool_]
) -> tuple[dict[str, Any], dict[str, F64], F64, int]:
    """(front's record, its arrays, inputs [n, d], numbers it stores)."""
    if ask.task == "text":
        column = ask.text or next((name for name in names if name != ask.target), "")
        if column not in names:
            raise unknown_name("column", column, names, field="text")
        texts = [row[names.index(column)] for row in rows]
        _, weights = fronts.text_features([text for text, kept in zip(texts, train, strict=True) if kept])
        x, _ = fronts.text_features(texts, weights)
        return {"kind": "text", "column": column}, {"rarity": weights}, x, len(weights)
    columns = [name for name in names if name != ask.target]
    cells = [[cell for name, cell in zip(names, row, strict=True) if name != ask.target] for row in rows]
    if ask.task == "image":
        pixels = np.asarray(
            [[_value(cell, "pixels", number) for cell in row] for number, row in enumerate(cells, 1)]
        )
        side = round(pixels.shape[1] ** 0.5)
        if side * side != pixels.shape[1] or side < 4:
            raise UserError(
                f"{pixels.shape[1]} columns of pixels make no square picture of 4 x 4 and more.",
                field="task",
                given=pixels.shape[1],
                nearest=max(4, side) ** 2,
            )
        x = fronts.picture_features(pixels.reshape(-1, side, side))
        return {"kind": "image", "columns": columns, "side": side}, {}, x, 0
    seen = [row for row, kept in zip(cells, train, strict=True) if kept]
    table = fronts.Table.of(seen, columns, ask.hashing)
    record = {"kind": "table", "columns": columns, "kinds": table.kinds, "hashing": ask.hashing}
    return record, {}, table.transform(cells), table.stored


def _forecast(names: list[str], rows: list[list[str]], ask: Ask, tell: Any) -> Learned:
    at = names.index(ask.target)
    values = np.asarray([_value(row[at], ask.target, number) for number, row in enumerate(rows, 1)])
    if not 1 <= ask.horizon <= len(values) // 2:
        raise UserError(
            f"a horizon of {ask.horizon} steps is not supported for {len(values)} rows (allowed 1 to half of "
            "them, "
            f"{len(values) // 2}).",
            field="horizon",
            given=ask.horizon,
            nearest=max(1, min(ask.horizon, len(values) // 2)),
        )
    seq = min(WINDOW, (len(values) - ask.horizon) // 3)
    size = seq + ask.horizon
    if seq < 4 or len(values) - size + 1 < 20:
        raise UserError(
            f"{len(values)} rows are too few for a horizon of {ask.horizon} (at least "
            f"{3 * ask.horizon + 40}).",
            field="table",
            given=len(values),
            nearest=3 * ask.horizon + 40,
        )
    windows = np.lib.stride_tricks.sliding_window_view(values, size)
    cut = int(0.8 * len(windows))
    train, test = windows[: max(8, cut - ask.horizon)], windows[cut:]
    lags = sorted({1, 2, 3, *(lag for lag in (12, 24, 48) if lag <= seq)})
    x, mean = fronts.window_features(train[:, :seq], lags)
    model = _estimator(False, x.shape[1], ask.horizon, ask)
    model.fit(x, train[:, seq:] - mean[:, None], tell=tell)
    other, level = fronts.window_features(test[:, :seq], lags)
    made = np.asarray(model.predict(other)).reshape(len(other), -1) + level[:, None]
    error = float(np.abs(made - test[:, seq:]).mean())
    naive = float(np.abs(test[:, seq - 1 : seq] - test[:, seq:]).mean())
    front = {"kind": "window", "seq": seq, "lags": lags, "horizon": ask.horizon}
    return Learned(
        ask,
        model,
        front,
        {},
        "mean absolute error",
        test=error,
        naive=naive,
        stored=0,
        seconds=0.0,
        rows=(len(train), len(test)),
        x=x,
    )


def _estimator(classify: bool, inputs: int, outputs: int, ask: Ask) -> Any:
    width, blocks = design_for_budget(ask.budget, inputs, outputs, ask.clip)
    kind = CuraClassifier if classify else CuraRegressor
    return kind(width, blocks, clip=ask.clip, steps=ask.steps, restarts=ask.restarts, seed=ask.seed)


def macro_f1(truth: Any, made: Any) -> float:
    """The mean over classes of 2 hits / (marked + predicted)."""
    scores = []
    for code in np.unique(truth):
        hits = int(((truth == code) & (made == code)).sum())
        scores.append(2 * hits / max(int((truth == code).sum() + (made == code).sum()), 1))
    return float(np.mean(scores))


def save(done: Learned, path: Path) -> int:
    """Write what was learned as a pack of one file (f4); returns its bytes."""
    model = done.model
    record = {
        "task": done.ask.task,
        "target": done.ask.target,
        "front": done.front,
        "design": [model.width, model.blocks, model.clip],
        "classes": [str(one) for one in getattr(model, "classes_", ())],
    }
    arrays = {"parameters": model.parameters_, "mean": model.mean_, "scale": model.scale_, **done.arrays}
    if hasattr(model, "y_mean_"):
        arrays |= {"y_mean": model.y_mean_, "y_scale": model.y_scale_}
    return SmallPack("signal", "cura", record, arrays).write(path, "f4")


def predict(pack: Path, table: Path, *, text: str | None = None) -> tuple[int, list[Any]]:
    """(rows of a table, what a saved network says of each; of a forecast, the steps behind its end).

    `text` is the table where `table` only names it.
    Raises UserError for a pack of something else and for missing columns, DamagedFileError for one that does
    not hold together."""
    found = SmallPack.read(pack)
    if found.model != "cura":
        raise UserError(
            f"{pack} holds the model {found.model[:40]!r}, not cura.", field="pack", given=found.model[:40]
        )
    try:
        model = _restored(found)
        front, target, task = found.record["front"], found.record["target"], found.record["task"]
        kind = front["kind"]
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise DamagedFileError(pack, f"its record and arrays do not go together ({error})") from error
    names, rows = read_rows(table, 1, text)
    needed = {"text": [front.get("column")], "window": [target]}.get(kind, front.get("columns", []))
    for name in needed:
        if name not in names:
            raise unknown_name("column", str(name), names, field="table")
    cells = [[row[names.index(name)] for name in needed] for row in rows]
    if kind == "window":
        values = np.asarray([_value(row[0], target, number) for number, row in enumerate(cells, 1)])
        if len(values) < front["seq"]:
            raise UserError(f"{table} has {len(values)} rows and {front['seq']} are needed.", field="table")
        x, level = fronts.window_features(values[None, -front["seq"] :], front["lags"])
        return len(rows), [float(value) for value in np.ravel(model.predict(x)) + level[0]]
    if kind == "text":
        x, _ = fronts.text_features([row[0] for row in cells], found.arrays["rarity"])
    elif kind == "image":
        pixels = np.asarray(
            [[_value(cell, "pixels", number) for cell in row] for number, row in enumerate(cells, 1)]
        )
        x = fronts.picture_features(pixels.reshape(-1, front["side"], front["side"]))
    else:
        x = fronts.Table(front["kinds"], front["hashing"]).transform(cells)
    made = model.predict(x)
    said = [float(value) for value in made] if task == "regress" else [str(value) for value in made]
    return len(rows), said


def _restored(found: SmallPack) -> Any:
    width, blocks, clip = found.record["design"]
    classes = found.record["classes"]
    model: Any = (CuraClassifier if classes else CuraRegressor)(width, blocks, clip=clip)
    arrays = found.arrays
    inputs = len(arrays["mean"])
    outputs = len(classes) or len(arrays["y_mean"])
    model.design_ = Design(inputs, outputs, width, blocks, clip=clip)
    if len(arrays["parameters"]) != model.design_.count():
        raise ValueError("there are too few or too many numbers")
    model.parameters_, model.mean_, model.scale_ = arrays["parameters"], arrays["mean"], arrays["scale"]
    model.n_features_in_ = inputs
    if classes:
        model.classes_ = np.asarray(classes)
    else:
        model.y_mean_, model.y_scale_, model._flat = arrays["y_mean"], arrays["y_scale"], outputs == 1
    return model


def _value(cell: Any, name: str, number: int) -> float:
    try:
        value = float(str(cell))
    except ValueError:
        raise UserError(
            f"row {number}: {str(cell)[:40]!r} in the column {name} is no number.",
            field=name,
            given=str(cell)[:40],
        ) from None
    if not np.isfinite(value):
        raise UserError(
            f"row {number}: the column {name} holds {value} (NaN or infinite); fill or drop it.", field=name
        )
    return value


__all__: Sequence[str] = ("Ask", "Learned", "learn", "macro_f1", "predict", "save")
