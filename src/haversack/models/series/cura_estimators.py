"""CuraRegressor and CuraClassifier: CURA (a reconstruction, cura.py) behind scikit-learn's contract.

What is here: inputs are standardised, targets of a regression too. A fifth of the rows is held out to choose
among restarts (stratified by class), the winner is polished by L-BFGS as long as the held-out rows gain.
Every number that is stored is counted: `count()` gives learned ones, fixed ones (means, scales) and bytes.
`explain()` says how far each gate is open. `export_c()` writes one C file, int8 weights, tanh from a table of
64 entries.
Limits: rows are used all at once; some ten thousand rows of some hundred inputs are the practical end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.models.series import cura
from haversack.models.series._estimator import BadInput, Estimator
from haversack.models.series.cura import Design, class_loss, forward, square_loss

SYSTEM = 10

F64 = NDArray[np.float64]
SMOOTHING = 0.05
HELD_OUT = 0.2


class _Cura(Estimator):
    """What both estimators share; see CuraRegressor for the parameters."""

    def __init__(
        self,
        width: int = 8,
        blocks: int = 3,
        tied: bool = False,
        clip: str = "tanh",
        gate: bool = True,
        residual: bool = True,
        steps: int = 2000,
        restarts: int = 5,
        rate: float = 1e-2,
        decay: float = 1e-4,
        polish: int = 300,
        seed: int = 0,
    ) -> None:
        self.width = width
        self.blocks = blocks
        self.tied = tied
        self.clip = clip
        self.gate = gate
        self.residual = residual
        self.steps = steps
        self.restarts = restarts
        self.rate = rate
        self.decay = decay
        self.polish = polish
        self.seed = seed

    def _design(self, inputs: int, outputs: int) -> Design:
        for name, value in (("steps", self.steps), ("restarts", self.restarts)):
            if isinstance(value, bool) or value < 1:
                raise BadInput(
                    f"{name}={value} is not supported (allowed 1 and more).", field=name, given=value
                )
        return Design(
            inputs, outputs, self.width, self.blocks, self.tied, self.clip, self.gate, self.residual
        )

    def _learn(self, x: F64, wanted: F64, loss: cura.Loss, held: NDArray[np.bool_], tell: Any) -> None:
        design = self._design(x.shape[1], wanted.shape[1])
        self.mean_, scale = x.mean(0), x.std(0)
        self.scale_ = np.where(scale > 1e-12, scale, 1.0)
        scaled = (x - self.mean_) / self.scale_
        rows, goals = scaled[~held].astype(np.float32), wanted[~held].astype(np.float32)
        found = cura.train(
            design,
            rows,
            goals,
            loss,
            steps=self.steps,
            restarts=self.restarts,
            rate=self.rate,
            decay=self.decay,
            seed=self.seed,
            tell=tell,
        ).astype(np.float64)
        left = (scaled[held], wanted[held])
        scores, _ = loss(forward(design, design.split(found), left[0]), left[1])
        self.scores_ = np.asarray(scores)
        best = found[int(np.nanargmin(np.where(np.isfinite(scores), scores, np.inf)))]
        if self.polish:
            best = cura.polish(design, best, scaled[~held], wanted[~held], loss, self.polish, left)
        self.design_, self.parameters_ = design, best
        self.n_features_in_ = x.shape[1]

    def _made(self, x: Any) -> F64:
        self._need_fit("parameters_")
        rows = as_rows(x, self.n_features_in_, type(self).__name__)
        made = forward(self.design_, self.design_.split(self.parameters_), (rows - self.mean_) / self.scale_)
        return np.asarray(made)

    def count(self) -> dict[str, int]:
        """Every stored number: `learned`, `fixed` (means and scales), and `bytes` as float32."""
        self._need_fit("parameters_")
        learned = self.design_.count()
        fixed = 2 * self.n_features_in_ + self._fixed_outputs()
        return {"learned": learned, "fixed": fixed, "bytes": 4 * (learned + fixed)}

    def _fixed_outputs(self) -> int:
        return 0

    def explain(self, x: Any) -> F64:
        """How far each unit's gate is open on average, [blocks, width] from 0 to 1."""
        self._need_fit("parameters_")
        if not self.gate:
            raise BadInput("there are no gates (gate=False).", field="gate", given=False)
        rows = (as_rows(x, self.n_features_in_, type(self).__name__) - self.mean_) / self.scale_
        keep: list[Any] = []
        forward(self.design_, self.design_.split(self.parameters_), rows, keep)
        return np.stack([cell[4].mean(0) for cell in keep[1:-1]])

    def export_c(self, name: str = "cura", rows: Any = None) -> str:
        """One C99 file of the fitted network; int8's error is fitted away on `rows`, such as those of the
        training (see _cura_c.py)."""
        from haversack.models.series._cura_c import c_source

        self._need_fit("parameters_")
        if rows is not None:
            rows = as_rows(rows, self.n_features_in_, type(self).__name__)
        return c_source(self, name, rows)


class CuraRegressor(_Cura):
    """Regression by a residual gated cell of `width` units, `blocks` times.

    `tied` shares the cell over depth; `clip` is tanh, sin (periodic targets) or relu (an ablation, as are
    `gate` and `residual` off); `restarts` first weights are trained for `steps` steps at once and the best on
    held-out rows polished for `polish` rounds.

    >>> import numpy as np
    >>> x = np.linspace(-1, 1, 200)[:, None]
    >>> model = CuraRegressor(width=4, blocks=1, steps=300).fit(x, np.sin(4 * x[:, 0]))
    >>> bool(model.score(x, np.sin(4 * x[:, 0])) > 0.99), model.count()["learned"]
    (True, 61)
    """

    _estimator_type = "regressor"

    def fit(self, X: Any, y: Any, tell: Callable[[int], None] | None = None) -> Self:
        """Fit rows X [n, inputs] to y [n] or [n, outputs]. Raises UserError (a ValueError too) for shapes
        that do not go together and for numbers that are not finite."""
        x = as_rows(X, None, type(self).__name__)
        goals = np.asarray(y, np.float64)
        self._flat = goals.ndim == 1
        goals = goals.reshape(len(goals), -1)
        check_targets(x, goals)
        self.y_mean_, scale = goals.mean(0), goals.std(0)
        self.y_scale_ = np.where(scale > 1e-12, scale, 1.0)
        held = np.zeros(len(x), bool)
        held[np.random.default_rng(self.seed).permutation(len(x))[: max(1, round(HELD_OUT * len(x)))]] = True
        self._learn(x, (goals - self.y_mean_) / self.y_scale_, square_loss, held, tell)
        return self

    def predict(self, X: Any) -> F64:
        """[n] or [n, outputs]."""
        made = self._made(X) * self.y_scale_ + self.y_mean_
        return made[:, 0] if self._flat else made

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R squared, the mean over outputs."""
        goals = np.asarray(y, np.float64).reshape(len(np.asarray(y)), -1)
        made = np.asarray(self.predict(X)).reshape(goals.shape)
        weights = np.ones(len(goals)) if sample_weight is None else np.asarray(sample_weight, np.float64)
        level = np.average(goals, axis=0, weights=weights)
        left = np.average((goals - made) ** 2, axis=0, weights=weights)
        whole = np.average((goals - level) ** 2, axis=0, weights=weights)
        return float(np.mean(1 - left / np.where(whole > 0, whole, 1.0)))

    def _fixed_outputs(self) -> int:
        return 2 * len(self.y_mean_)

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import RegressorTags

        tags = super().__sklearn_tags__()
        tags.estimator_type, tags.regressor_tags = "regressor", RegressorTags()
        tags.target_tags.required, tags.target_tags.multi_output = True, True
        return tags


class CuraClassifier(_Cura):
    """Classification by the same network; parameters as of CuraRegressor."""

    _estimator_type = "classifier"

    def fit(self, X: Any, y: Any, tell: Callable[[int], None] | None = None) -> Self:
        """Fit rows X [n, inputs] to classes y [n]. Raises UserError (a ValueError too) for a single class."""
        x = as_rows(X, None, type(self).__name__)
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        check_targets(x, codes[:, None].astype(np.float64))
        if len(self.classes_) < 2:
            raise BadInput(
                f"the target has one class ({self.classes_[0]}); a classifier needs two.", field="target"
            )
        shares = np.full((len(x), len(self.classes_)), SMOOTHING / len(self.classes_))
        shares[np.arange(len(x)), codes] += 1 - SMOOTHING
        self._learn(x, shares, class_loss, stratified(codes, self.seed), tell)
        return self

    def predict_proba(self, X: Any) -> F64:
        """[n, classes]."""
        made = self._made(X)
        shares = np.exp(made - made.max(1, keepdims=True))
        return np.asarray(shares / shares.sum(1, keepdims=True))

    def predict(self, X: Any) -> Any:
        """The likeliest class of each row."""
        return self.classes_[self._made(X).argmax(1)]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy."""
        return float(np.average(self.predict(X) == np.asarray(y), weights=sample_weight))

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags

        tags = super().__sklearn_tags__()
        tags.estimator_type, tags.classifier_tags = "classifier", ClassifierTags()
        tags.target_tags.required = True
        return tags


def as_rows(given: Any, inputs: int | None, who: str) -> F64:
    """[n, inputs] f64. Raises BadInput for another shape or numbers that are not finite."""
    rows = np.asarray(given, np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0 or len(rows) == 0:
        raise BadInput(
            f"X has the shape {list(rows.shape)}; give [rows, inputs].", field="X", given=list(rows.shape)
        )
    if inputs is not None and rows.shape[1] != inputs:
        raise BadInput(
            f"X has {rows.shape[1]} features, but {who} is expecting {inputs} features as input.",
            field="X",
            given=rows.shape[1],
            nearest=inputs,
        )
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        raise BadInput(
            f"X holds {rows[row, column]} (NaN or infinite) in row {row}, column {column}.", field="X"
        )
    return rows


def check_targets(x: F64, goals: F64) -> None:
    """Raises BadInput where rows and targets do not go together."""
    if len(x) != len(goals):
        raise BadInput(
            f"X has {len(x)} rows and y {len(goals)}.", field="y", given=len(goals), nearest=len(x)
        )
    if not np.isfinite(goals).all():
        raise BadInput("y holds numbers that are NaN or infinite.", field="y")
    if len(x) < 5:
        raise BadInput(
            f"{len(x)} rows are too few to learn from and to hold out (5 at least).", field="X", given=len(x)
        )


def stratified(codes: Any, seed: int) -> NDArray[np.bool_]:
    """A fifth of each class, one row at least where it has two."""
    random, held = np.random.default_rng(seed), np.zeros(len(codes), bool)
    for code in np.unique(codes):
        rows = random.permutation(np.flatnonzero(codes == code))
        held[rows[: max(1 if len(rows) > 1 else 0, round(HELD_OUT * len(rows)))]] = True
    if not held.any():
        held[0] = True
    return held


def design_for_budget(budget: int, inputs: int, outputs: int, clip: str = "tanh") -> tuple[int, int]:
    """(width, blocks) of the largest network of at most `budget` learned numbers, the wider one first of
    those with two blocks and more. Raises UserError where none is small enough."""
    found: tuple[int, int, int] | None = None
    for width in (4, 6, 8, 12, 16, 24, 32):
        for blocks in (1, 2, 3, 4):
            size = Design(inputs, outputs, width, blocks, clip=clip).count()
            if size <= budget and (found is None or size > found[0]):
                found = size, width, blocks
    if found is None:
        least = Design(inputs, outputs, 4, 1, clip=clip).count()
        raise UserError(
            f"a budget of {budget} numbers is too small for {inputs} inputs and {outputs} outputs (at least "
            f"{least}); raise --budget-params.",
            field="budget_params",
            given=budget,
            nearest=least,
        )
    return found[1], found[2]
