"""Packs of one small file as C: forecasters and CURA say in C what they say in Python."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.embed.build import build, load_graph
from haversack.embed.verify import verify
from haversack.formats.small_pack import SmallPack
from haversack.models.graph.series import Runner
from haversack.models.series._saved import from_pack, to_pack
from haversack.models.series.cura_estimators import CuraClassifier, CuraRegressor
from haversack.models.series.dlinear import DLinear
from haversack.models.series.mixlinear import MixLinear
from haversack.models.series.seasonal_naive import SeasonalNaive
from haversack.models.series.sparsetsf import SparseTSF
from haversack.train.cura import Ask, Learned, save

RNG = np.random.default_rng(47)
SERIES = 20 + np.sin(np.arange(700) * 2 * np.pi / 12) + 0.1 * RNG.normal(size=700)


def as_c(path: Path, folder: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    build(path, folder)
    assert verify(folder).holds


@pytest.mark.parametrize("kind", [MixLinear, SparseTSF, DLinear])
def test_a_forecast_is_that_of_the_pack(kind: type, tmp_path: Path) -> None:
    settings = {} if kind is DLinear else {"period": 12}
    model = kind(horizon=20, seq=72, **settings).fit(SERIES[:, None])
    path = tmp_path / "f.pack"
    to_pack(model).write(path, "f4")
    loaded, _ = from_pack(SmallPack.read(path), path)
    graph = load_graph(path)
    windows = np.stack([SERIES[at : at + 72] for at in (0, 100, 500)])
    wanted = loaded.predict(windows[..., None])[..., 0]
    np.testing.assert_allclose(Runner(graph).run(windows), wanted, rtol=1e-5, atol=1e-5)
    as_c(path, tmp_path / "c")


@pytest.mark.parametrize(("kind", "clip"), [(CuraClassifier, "tanh"), (CuraRegressor, "relu")])
def test_cura_is_that_of_the_pack(kind: type, clip: str, tmp_path: Path) -> None:
    x = RNG.normal(2, 3, size=(60, 4))
    y = (x[:, 0] > 2) * 1 + (x[:, 1] > 2) if kind is CuraClassifier else x @ np.arange(4.0)
    model = kind(5, 2, clip=clip, steps=30, restarts=1).fit(x, y)
    path = tmp_path / "c.pack"
    task = "classify" if kind is CuraClassifier else "regress"
    save(Learned(Ask(task, "y"), model, {"kind": "table"}, {}, "", 0, 0, 0, 0, (60, 0)), path)
    logits = Runner(load_graph(path)).run(x)
    if kind is CuraRegressor:
        np.testing.assert_allclose(logits[:, 0], model.predict(x), rtol=1e-4, atol=1e-4)
    else:
        np.testing.assert_array_equal(model.classes_[logits.argmax(1)], model.predict(x))
    as_c(path, tmp_path / "c")


def test_packs_without_a_graph_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.pack"
    to_pack(SeasonalNaive(horizon=4, seq=24, period=12).fit(SERIES[:, None])).write(path)
    with pytest.raises(UserError, match="nothing to compile"):
        load_graph(path)
    two = np.stack([SERIES, 3 * SERIES], axis=1)
    to_pack(DLinear(horizon=4, seq=24).fit(two)).write(path)
    with pytest.raises(UserError, match="forecasts 2 channels"):
        load_graph(path)
    x = RNG.normal(size=(40, 3))
    model = CuraRegressor(4, 1, clip="sin", steps=5, restarts=1).fit(x, x[:, 0])
    save(Learned(Ask("regress", "y"), model, {"kind": "table"}, {}, "", 0, 0, 0, 0, (40, 0)), path)
    with pytest.raises(UserError, match="clips by sin"):
        load_graph(path)
    SmallPack("mcu", "other", {}, {}).write(path)
    with pytest.raises(UserError, match="'other', which has no graph"):
        load_graph(path)
    SmallPack("signal", "cura", {"design": [4, 1, "tanh"], "classes": []}, {"mean": np.zeros(3)}).write(path)
    with pytest.raises(UserError, match="do not go together"):
        load_graph(path)
