"""MixLinear and the forecasters beside it: the specification's numbers, exactness of fit, packs and C."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.series_csv import read_series
from haversack.formats.small_pack import SmallPack
from haversack.models.series import DLinear, MixLinear, SeasonalNaive, SparseTSF
from haversack.models.series._factors import Tensors, solve
from haversack.models.series._forecaster import detect_period, spread
from haversack.models.series._mixlinear_c import c_source, rounded, weight_nbytes
from haversack.models.series._moments import Moments, window_errors
from haversack.models.series._saved import from_pack, to_pack
from haversack.models.series.mixlinear import parameter_count


def days(rows: int, channels: int = 2, seed: int = 0, period: int = 24) -> np.ndarray:
    random = np.random.default_rng(seed)
    time = np.arange(rows)[:, None]
    waves = np.sin(2 * np.pi * time / period + np.arange(channels)) * (1 + 0.3 * np.sin(time / 200))
    return 10 + 3 * waves + 0.3 * random.standard_normal((rows, channels)).cumsum(0) / 10


def with_weights(seed: int = 0, **settings: int) -> MixLinear:
    model = MixLinear(**settings)
    model._check()
    random = np.random.default_rng(seed)
    model.mean_, model.scale_ = np.zeros(()), np.ones(())
    model._keep(0.1 * random.standard_normal(model.period + 1), random.standard_normal(model._map().size))
    return model


@pytest.mark.parametrize(
    ("horizon", "bins", "count"), [(96, 1, 59), (192, 5, 87), (336, 2, 105), (720, 19, 195)]
)
def test_the_published_counts(horizon: int, bins: int, count: int) -> None:
    assert MixLinear(horizon).count() == parameter_count(720, horizon, 24, bins) == count
    assert SparseTSF(horizon).count() == 25 + 30 * horizon // 24


def test_a_complex_number_is_two_real_ones() -> None:
    assert parameter_count(720, 96, 24, 1, complex_as=2) == 69
    assert MixLinear(96)._map().size + 25 == 69


@pytest.mark.parametrize("settings", [{}, {"horizon": 100}, {"horizon": 10, "seq": 63, "period": 7}])
def test_the_network_is_its_matrix(settings: dict[str, int]) -> None:
    model = with_weights(3, **settings)
    windows = np.random.default_rng(0).standard_normal((3, model.seq, 2))
    by_matrix = np.einsum("hl,nlc->nhc", model.to_matrix(), windows)
    assert np.abs(model.forward(windows) - by_matrix).max() < 1e-5 * np.abs(by_matrix).max()


def test_a_constant_stays_and_scale_goes_through() -> None:
    model = with_weights(1)
    still = np.full((1, 720, 1), 7.5)
    assert np.abs(model.forward(still) - 7.5).max() < 1e-9
    x = np.random.default_rng(2).standard_normal((1, 720, 1))
    assert np.allclose(model.forward(3 * x), 3 * model.forward(x))


def test_one_hot_segments_repeat_the_last_period() -> None:
    model = with_weights(horizon=24)
    model.alpha = 1.0
    model.within_[:], model.across_[:] = 0, 0
    model.within_[0, 5] = model.across_[0, 4] = 1  # period 29 is the 5th of the 4th segment
    model.kernel_[:] = 0
    x = np.random.default_rng(0).standard_normal((1, 720, 2))
    assert np.allclose(model.forward(x), x[:, -24:])


def test_slopes_are_the_derivatives_of_the_map() -> None:
    mixed = with_weights(horizon=100)._map()
    at = np.random.default_rng(5).standard_normal(mixed.size)
    slopes = mixed.slopes(at)
    for index in range(0, mixed.size, 3):
        step = np.zeros(mixed.size)
        step[index] = 1e-6
        measured = (mixed.matrix(at + step) - mixed.matrix(at - step)) / 2e-6
        assert np.abs(measured - slopes[index]).max() < 1e-6


@pytest.mark.parametrize(("seq", "horizon", "period"), [(48, 10, 12), (36, 24, 12), (21, 9, 7)])
def test_moments_know_the_error_of_every_network(seq: int, horizon: int, period: int) -> None:
    values = days(300)
    values = (values - values.mean(0)) / values.std(0)
    model = with_weights(2, horizon=horizon, seq=seq, period=period)
    moments = Moments.of(values, seq, horizon)
    slow = window_errors(values, seq, horizon, model.to_matrix()).mse
    assert moments.error(model.to_matrix()) == pytest.approx(slow, rel=1e-5)
    tensors = Tensors.of(moments, period)
    assert tensors.error(model.kernel_, model.period_map()) == pytest.approx(slow, rel=1e-5)


def test_the_solver_comes_to_a_point_that_no_step_betters() -> None:
    values = days(400)
    values = (values - values.mean(0)) / values.std(0)
    model = with_weights(0, horizon=24, seq=96, period=24)
    tensors = Tensors.of(Moments.of(values, 96, 24), 24)
    start = tensors.error(model.kernel_, model.period_map())
    found = solve(tensors, model._map(), model.kernel_, model.parameters_, 0.0)
    assert found.error < 0.2 * start
    random = np.random.default_rng(1)
    for _ in range(50):
        moved = found.parameters + 1e-3 * random.standard_normal(found.parameters.shape)
        assert tensors.error(found.kernel, model._map().matrix(moved)) > found.error - 1e-5


def test_dlinear_is_ridge_regression() -> None:
    """Without ridge its matrix is the plain least squares of windows with a bias."""
    values = days(200, 1)
    model = DLinear(horizon=3, seq=8)
    moments = Moments.of(values - values.mean(), 8, 3)
    matrix, bias = model._solve(moments, np.eye(8), 0.0)
    flat = (values - values.mean())[:, 0]
    past = np.lib.stride_tricks.sliding_window_view(flat, 8)[:190]
    ahead = np.lib.stride_tricks.sliding_window_view(flat[8:], 3)
    found = np.linalg.lstsq(np.c_[past, np.ones(190)], ahead, rcond=None)[0]
    assert np.allclose(matrix, found[:-1].T, atol=1e-3)
    assert np.allclose(bias, found[-1], atol=1e-3)


def test_partial_fit_equals_one_fit_of_both_parts() -> None:
    """Moments add up: windows of both parts are learned from, none across the joint."""
    one, two = days(300, seed=1), days(300, seed=2)
    model = MixLinear(24, 96, 24).fit(one)
    model.partial_fit(two)
    scaled = [(part - model.mean_) / model.scale_ for part in (one, two)]
    both = Moments.of(scaled[0], 96, 24) + Moments.of(scaled[1], 96, 24)
    assert np.allclose(model.moments_.second, both.second)
    tensors = Tensors.of(both, 24)
    again = solve(tensors, model._map(), model.kernel_, model.parameters_, model.ridge_)
    assert tensors.error(model.kernel_, model.period_map()) < again.error * 1.02


def test_the_period_is_found() -> None:
    assert detect_period(days(400)) == 24
    assert detect_period(days(400, period=7)) == 7
    assert detect_period(np.random.default_rng(0).standard_normal(500)) == 1


@pytest.mark.parametrize("kind", [MixLinear, SparseTSF, DLinear, SeasonalNaive])
def test_scikit_learn_clones_and_searches(kind: type) -> None:
    base = pytest.importorskip("sklearn.base")
    selection = pytest.importorskip("sklearn.model_selection")
    model = kind(horizon=12, seq=48)
    copy = base.clone(model)
    assert copy is not model and copy.get_params() == model.get_params()
    search = selection.GridSearchCV(
        model, {"seq": [24, 48]}, cv=selection.TimeSeriesSplit(2, test_size=100), error_score="raise"
    )
    search.fit(days(500))
    assert search.best_params_["seq"] in (24, 48)
    assert search.predict(days(100)).shape == (12, 2)
    with pytest.raises(UserError, match="did you mean seq"):
        model.set_params(sq=3)


@pytest.mark.parametrize("kind", [MixLinear, SparseTSF, DLinear, SeasonalNaive])
@pytest.mark.parametrize("stored", ["f4", "f2"])
def test_a_pack_forecasts_as_the_fit_did(kind: type, stored: str, tmp_path: Path) -> None:
    model = kind(horizon=24, seq=96).fit(days(400))
    to_pack(model, step=3600.0).write(tmp_path / "m.pack", stored)
    again, step = from_pack(SmallPack.read(tmp_path / "m.pack"), "m.pack")
    recent = days(500)[-96:]
    assert step == 3600
    assert np.abs(again.predict(recent) - model.predict(recent)).max() < (1e-4 if stored == "f4" else 0.05)


def test_a_pack_has_a_few_hundred_bytes(tmp_path: Path) -> None:
    model = with_weights()
    assert to_pack(model).write(tmp_path / "m.pack") < 300
    whole = (tmp_path / "m.pack").read_bytes()
    for at in range(0, len(whole), 5):
        (tmp_path / "m.pack").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DamagedFileError):
            SmallPack.read(tmp_path / "m.pack")
    wrong = SmallPack("signal", "mixlinear", {"horizon": 96, "seq": 721}, to_pack(model).arrays)
    with pytest.raises(DamagedFileError, match="multiple of the period"):
        from_pack(wrong, "m.pack")
    with pytest.raises(UserError, match="no forecaster"):
        from_pack(SmallPack("signal", "heart", {}, {}), "m.pack")


@pytest.mark.parametrize("settings", [{"horizon": 720}, {"horizon": 10, "seq": 63, "period": 7}])
def test_c_forecasts_as_the_rounded_model(settings: dict[str, int], tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None
    model = with_weights(4, **settings)
    assert weight_nbytes(model) <= 1024
    x = 5 + np.random.default_rng(0).standard_normal(model.seq).astype(np.float32)
    main = (
        '#include <stdio.h>\n#include "m.c"\nint main(void) { static float x[SEQ], y[HORIZON];\n'
        'for (int i = 0; i < SEQ; i++) if (scanf("%f", &x[i]) != 1) return 1;\n'
        "forecast_prepare(); forecast_forecast(x, y);\n"
        'for (int i = 0; i < HORIZON; i++) printf("%.8g\\n", y[i]);\nreturn 0; }\n'
    )
    (tmp_path / "m.c").write_text(c_source(model))
    (tmp_path / "main.c").write_text(main)
    line = [compiler, "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "main.c", "-o", "m", "-lm"]
    subprocess.run(line, cwd=tmp_path, check=True)
    said = subprocess.run(
        [tmp_path / "m"], input=" ".join(map(str, x)), capture_output=True, text=True, check=True
    )
    ours = rounded(model).predict(x.astype(np.float64))
    assert np.abs(np.array(said.stdout.split(), float) - ours).max() < 1e-3 * np.abs(ours).max()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (MixLinear(96, 700), "not a multiple of the period 24; use seq=696"),
        (MixLinear(96, bins=31), r"bins=31 .*allowed 1 to seq / period = 30"),
        (MixLinear(96, alpha=1.5), "alpha=1.5"),
        (MixLinear(0), "horizon=0"),
        (MixLinear(96, period=0), "period=0"),
        (MixLinear(96, 24 * 400), "at most 8192"),
        (MixLinear(600, 720), "at least 1320 are needed"),
    ],
)
def test_what_cannot_be_is_refused(model: MixLinear, said: str) -> None:
    with pytest.raises(UserError, match=said):
        model.fit(days(1000))


def test_gaps_and_other_channels_are_refused() -> None:
    values = days(400)
    values[7, 1] = np.nan
    with pytest.raises(UserError, match="row 7, channel 1"):
        MixLinear(24, 96).fit(values)
    model = MixLinear(24, 96).fit(days(400))
    with pytest.raises(UserError, match="3 channels and 2 were fitted"):
        model.predict(days(100, 3))
    with pytest.raises(UserError, match="call fit first"):
        MixLinear().predict(days(800))


def test_ettH1_has_the_windows_and_levels_of_the_standard_splits(data: Callable[[str], Path]) -> None:  # noqa: N802
    values = read_series(data("series/ETTh1.csv")).values
    assert values.shape == (17420, 7)
    counts = [len(part) - 720 - 96 + 1 for part in (values[:8640], values[7920:11520], values[10800:14400])]
    assert counts == [7825, 2785, 2785]
    mean, scale = spread(values[:8640])
    assert mean[6] == pytest.approx(17.1282617, abs=1e-6)
    assert scale[6] == pytest.approx(9.1764910, abs=1e-6)


def test_on_etth1_it_is_as_good_as_what_has_more_than_twice_its_numbers(data: Callable[[str], Path]) -> None:
    values = read_series(data("series/ETTh1.csv")).values
    found = {}
    for model in (MixLinear(96), SparseTSF(96)):
        model.fit(values[:8640], validation=values[7920:11520])
        found[model.name] = model.errors(values[10800:14400])
        assert found[model.name].windows == 2785
    assert found["mixlinear"].mse < 1.05 * found["sparsetsf"].mse
    assert found["mixlinear"].mse < 0.3733
