"""CURA, the reconstruction: counts, gradients, what it is without its parts, estimators, C."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.models.series import CuraClassifier, CuraRegressor
from haversack.models.series import _cura_fronts as fronts
from haversack.models.series._cura_c import codes, reference, rounded, weight_nbytes
from haversack.models.series.cura import (
    Design,
    backward,
    class_loss,
    forward,
    low_pass,
    polish,
    square_loss,
    train,
)
from haversack.models.series.cura_estimators import design_for_budget


@pytest.mark.parametrize(
    ("inputs", "width", "blocks", "outputs", "count"),
    [
        (1, 6, 3, 1, 307),
        (64, 8, 3, 10, 1090),
        (1, 4, 2, 1, 109),
        (1, 8, 4, 1, 665),
        (64, 6, 2, 10, 652),
        (64, 12, 3, 10, 1918),
    ],
)
def test_the_formula_of_the_parameters(
    inputs: int, width: int, blocks: int, outputs: int, count: int
) -> None:
    design = Design(inputs, outputs, width, blocks)
    assert design.count() == count
    formula = width * (inputs + 1) + blocks * (2 * width**2 + 4 * width) + outputs * (width + 1)
    assert design.count() == formula == len(design.start(np.random.default_rng(0)))


def test_tied_cells_share_all_but_their_knobs() -> None:
    one, many = Design(3, 2, 6, 1, tied=True), Design(3, 2, 6, 5, tied=True)
    assert many.count() - one.count() == 4 * 2 * 6


def test_without_mixing_it_is_an_mlp_of_one_hidden_layer() -> None:
    design = Design(3, 2, 5, 4)
    p = design.split(design.start(np.random.default_rng(0)))
    p["m"][...] = 0
    x = np.random.default_rng(1).standard_normal((20, 3))
    assert np.array_equal(forward(design, p, x), np.tanh(x @ p["W_in"] + p["b_in"]) @ p["W_out"] + p["b_out"])


@pytest.mark.parametrize("clip", ["tanh", "sin", "relu"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("gate", "residual"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("loss", [square_loss, class_loss])
def test_gradients_are_the_derivatives(
    clip: str, tied: bool, gate: bool, residual: bool, loss: object
) -> None:
    design = Design(2, 3, 4, 2, tied, clip, gate, residual)
    random = np.random.default_rng(3)
    flat = design.start(random)
    x = random.standard_normal((7, 2))
    wanted = random.random((7, 3))
    wanted /= wanted.sum(1, keepdims=True)

    def value(at: np.ndarray) -> float:
        return float(loss(forward(design, design.split(at), x), wanted)[0])  # type: ignore[operator]

    keep: list = []
    p, slopes = design.split(flat), np.zeros_like(flat)
    _, slope = loss(forward(design, p, x, keep), wanted)  # type: ignore[operator]
    backward(design, p, x, keep, slope, design.split(slopes))
    for index in range(0, len(flat), 2):
        step = np.zeros_like(flat)
        step[index] = 1e-6
        assert (value(flat + step) - value(flat - step)) / 2e-6 == pytest.approx(slopes[index], abs=1e-6)


def test_restarts_do_not_touch_one_another() -> None:
    """A restart's weights are the same alone and beside others, and the same again."""
    x = np.linspace(-1, 1, 60, dtype=np.float32)[:, None]
    y = np.sin(5 * x)
    design = Design(1, 1, 4, 1)
    many = train(design, x, y, square_loss, steps=40, restarts=3, seed=7)
    alone = train(design, x, y, square_loss, steps=40, restarts=1, seed=7)
    assert np.allclose(many[0], alone[0], atol=1e-5)
    assert np.array_equal(many, train(design, x, y, square_loss, steps=40, restarts=3, seed=7))
    p = design.split(many)
    assert p["d"].min() >= 0.1 and p["d"].max() <= 8


def test_polish_lowers_the_loss_and_keeps_the_best_held_out() -> None:
    x = np.linspace(-1, 1, 80)[:, None]
    y = np.sin(6 * x)
    design = Design(1, 1, 6, 1)
    start = design.start(np.random.default_rng(0))

    def at(flat: np.ndarray) -> float:
        return float(square_loss(forward(design, design.split(flat), x), y)[0])

    assert at(polish(design, start, x, y, square_loss, 200)) < 0.02 * at(start)
    held = (x[::7], y[::7])
    kept = polish(design, start, x, y, square_loss, 30, held)
    score = float(square_loss(forward(design, design.split(kept), held[0]), held[1])[0])
    first = float(square_loss(forward(design, design.split(start), held[0]), held[1])[0])
    assert score <= first


def test_the_rc_filter() -> None:
    steps = np.ones(10)
    assert low_pass(steps, 0.1)[-1] == pytest.approx(0.6513, abs=5e-5)
    x = np.random.default_rng(0).standard_normal((20, 3))
    assert np.array_equal(low_pass(x, 1.0), x)


def target(x: np.ndarray) -> np.ndarray:
    return np.sin(6 * x) * np.exp(-(x**2)) + 0.5 * np.sign(np.sin(4 * x))


def test_a_regressor_of_a_hundred_numbers() -> None:
    x = np.linspace(-2, 2, 300)[:, None]
    model = CuraRegressor(4, 2, steps=1200, restarts=4).fit(x, target(x[:, 0]))
    assert model.count() == {"learned": 109, "fixed": 4, "bytes": 452}
    linear = np.polynomial.Polynomial.fit(x[:, 0], target(x[:, 0]), 5)(x[:, 0])
    ours = np.mean((model.predict(x) - target(x[:, 0])) ** 2)
    assert ours < 0.3 * np.mean((linear - target(x[:, 0])) ** 2)
    assert len(model.scores_) == 4
    gates = model.explain(x)
    assert gates.shape == (2, 4) and (gates > 0).all() and (gates < 1).all()


def test_two_spirals_and_several_outputs() -> None:
    turn = np.sqrt(np.random.default_rng(0).random(240)) * 3 * np.pi
    spiral = np.stack([turn * np.cos(turn), turn * np.sin(turn)], 1)
    x, y = np.concatenate([spiral, -spiral]), np.array(["in"] * 240 + ["out"] * 240)
    model = CuraClassifier(8, 2, steps=1500, restarts=3).fit(x, y)
    assert model.score(x, y) > 0.8
    assert np.allclose(model.predict_proba(x).sum(1), 1)
    both = CuraRegressor(4, 1, steps=100, restarts=2).fit(x, x[:, ::-1])
    assert both.predict(x).shape == x.shape and both.score(x, x[:, ::-1]) > 0.9


def test_scikit_learn_takes_them() -> None:
    base = pytest.importorskip("sklearn.base")
    pipeline = pytest.importorskip("sklearn.pipeline")
    selection = pytest.importorskip("sklearn.model_selection")
    scaler = pytest.importorskip("sklearn.preprocessing")
    random = np.random.default_rng(0)
    x = random.standard_normal((90, 3))
    y = x[:, 0] * x[:, 1]
    model = CuraRegressor(4, 1, steps=150, restarts=2, polish=20)
    assert base.is_regressor(model) and base.is_classifier(CuraClassifier())
    assert base.clone(model).get_params() == model.get_params()
    chain = pipeline.make_pipeline(scaler.StandardScaler(), model)
    found = selection.GridSearchCV(chain, {"curaregressor__width": [4, 6]}, cv=2, error_score="raise").fit(
        x, y
    )
    assert found.best_params_["curaregressor__width"] in (4, 6)
    labels = np.where(y > 0, "up", "down")
    scores = selection.cross_val_score(CuraClassifier(4, 1, steps=200, restarts=2), x, labels, cv=3)
    assert scores.mean() > 0.7


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ([[1.0], [np.nan]] * 5, [0, 1] * 5, "NaN or infinite"),
        ([[1.0]] * 10, [0, 1] * 4, "10 rows and y 8"),
        ([[1.0]] * 3, [0, 1, 0], "3 rows are too few"),
        ([1.0] * 10, [0, 1] * 5, "give .rows, inputs."),
    ],
)
def test_bad_rows_are_refused(x: list, y: list, said: str) -> None:
    for kind in (CuraRegressor, CuraClassifier):
        with pytest.raises(ValueError, match=said):
            kind(4, 1, steps=5).fit(np.array(x), np.array(y))


def test_what_cannot_be_is_refused() -> None:
    x = np.random.default_rng(0).standard_normal((20, 2))
    with pytest.raises(UserError, match="has one class"):
        CuraClassifier(4, 1, steps=5).fit(x, np.zeros(20))
    with pytest.raises(UserError, match="clip=cos"):
        CuraRegressor(4, 1, clip="cos", steps=5).fit(x, x[:, 0])
    with pytest.raises(UserError, match="width=0"):
        CuraRegressor(0, 1, steps=5).fit(x, x[:, 0])
    with pytest.raises(UserError, match="call fit first"):
        CuraRegressor().predict(x)
    with pytest.raises(UserError, match="at least 65"):
        design_for_budget(20, 2, 1)
    assert design_for_budget(320, 1, 1) == (6, 3)
    fitted = CuraRegressor(4, 1, steps=5).fit(x, x[:, 0])
    with pytest.raises(ValueError, match="expecting 2 features"):
        fitted.predict(x[:, :1])


@pytest.mark.parametrize(
    "settings", [{}, {"clip": "sin"}, {"clip": "relu", "gate": False}, {"tied": True, "residual": False}]
)
def test_c_gives_what_the_rounded_network_gives(settings: dict, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None
    random = np.random.default_rng(0)
    x = random.standard_normal((60, 3)) * [1, 10, 0.1] + 5
    y = np.sin(x[:, 0]) * x[:, 1]
    model = CuraRegressor(6, 2, steps=60, restarts=2, polish=10, **settings).fit(x, y)
    assert weight_nbytes(model) <= 2048
    (tmp_path / "n.c").write_text(model.export_c("net"))
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "n.c"\nint main(void) {\n    float x[IN], y[OUT];\n'
        "    for (;;) {\n        for (int i = 0; i < IN; i++)\n"
        '            if (scanf("%f", &x[i]) != 1) return 0;\n'
        '        net_run(x, y);\n        printf("%.8g\\n", y[0]);\n    }\n}\n'
    )
    line = [compiler, "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "main.c", "-o", "n", "-lm"]
    subprocess.run(line, cwd=tmp_path, check=True)
    said = subprocess.run(
        [tmp_path / "n"], input=" ".join(map(str, x.ravel())), capture_output=True, text=True, check=True
    )
    made, ours = np.array(said.stdout.split(), float), reference(model, x)[:, 0]
    assert np.abs(made - ours).max() < 0.01 * np.ptp(ours) + 1e-4


@pytest.mark.parametrize("outputs", [1, 3])
def test_rounding_is_fitted_away_on_rows(outputs: int) -> None:
    """The bars of the C file: 1 % of the outputs' range on other rows; plain rounding is far from it here."""
    random = np.random.default_rng(4)
    x = random.uniform(-1, 1, (400, 2))
    y = np.stack([np.sin(5 * x[:, 0] + at) * x[:, 1] for at in range(outputs)], 1)
    model = CuraRegressor(6, 3, steps=300, restarts=2, polish=200).fit(x, y)
    other = random.uniform(-1, 1, (200, 2))
    made = model.predict(other)
    plain, fitted = (np.abs(reference(model, other, rows) - made).mean() for rows in (None, x))
    assert fitted < 0.3 * plain and fitted < 0.005 * np.ptp(made)
    small = rounded(model.design_, model.parameters_, (x - model.mean_) / model.scale_)
    for name, (whole, scale) in codes(model.design_, small).items():  # what is written is on the grid
        assert np.array_equal(whole * scale, model.design_.split(small)[name])
    with pytest.raises(UserError, match="expecting 2 features"):
        model.export_c(rows=x[:, :1])


def test_front_ends() -> None:
    rows = [[1.0, "red"], [2.0, "blue"], [3.0, "red"]]
    table = fronts.Table.of(rows, ["size", "colour"])
    assert table.inputs == 3 and table.stored == 2
    assert table.transform([["2", "red"]]).tolist() == [[0.0, 0.0, 1.0]]
    with pytest.raises(UserError, match="'green' in the column colour was never seen"):
        table.transform([[1, "green"]])
    assert fronts.Table.of(rows, ["size", "colour"], hashing=True).transform([[1, "green"]]).shape == (1, 9)
    with pytest.raises(UserError, match="missing or not finite in row 2"):
        fronts.Table.of([[1.0], [np.nan]], ["a"])
    assert np.allclose(fronts.cosines(8) @ fronts.cosines(8).T, np.eye(8))
    pictures = np.random.default_rng(0).random((2, 8, 8))
    assert np.isclose((fronts.picture_features(pictures) ** 2).sum(), (pictures**2).sum())
    assert fronts.picture_features(np.ones((2, 28, 28))).shape == (2, 64)
    features, mean = fronts.window_features(np.arange(20.0)[None], [1, 5])
    assert features.shape == (1, 8) and mean[0] == 9.5 and features[0, 6] == 9.5 and features[0, 7] == 5.5
    one, weights = fronts.text_features(["a b", "a c"])
    again, _ = fronts.text_features(["a b"], weights)
    assert one.shape == (2, 32) and np.allclose(one[0], again[0])
