"""The bench of MobileTL: its arms are what they are called, its front and halves are right, bytes hold."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from haversack.bench import Outcome, Run, Unavailable, find_bench
from haversack.bench.mobiletl import _data, accuracy, memory, products
from haversack.bench.mobiletl.accuracy import ARMS, Arm
from haversack.core import index


def run(quick: bool = True) -> Run:
    return Run(quick, 1, time.monotonic() + 600)


def held(found: object, row: str) -> bool:
    outcome = found[row]  # type: ignore[index]
    bar = next(each.bar for each in find_bench("20").rows if each.id == row)
    assert isinstance(outcome, Outcome)
    assert bar is not None
    judged = outcome.ratio if outcome.baseline is not None else outcome.ours.values[0]
    assert judged is not None
    return bar.holds(judged)


def test_every_kind_that_is_claimed_is_seen_in_a_minute() -> None:
    bench = find_bench("mobiletl")
    assert bench is find_bench("20")
    assert {row.kind for row in bench.rows if row.quick} == {row.kind for row in bench.rows}
    assert sum(measure.quick_seconds for measure in bench.measures if measure.quick) <= 60


def test_the_published_shares_hold_for_blocks_and_parts() -> None:
    pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")
    found = memory.blocks(run())
    assert all(held(found, row) for row in ("block-v2", "block-v3", "formula"))
    parts = memory.parts(run(quick=False))
    assert all(held(parts, f"part-{key}") for key in memory.NETWORKS)


def test_a_step_s_products() -> None:
    assert held(products.products(run()), "products-v3-large")


def test_every_arm_is_a_choice_that_there_is() -> None:
    for choice in ARMS.values():
        index.create("train", "parameters", choice)
    assert accuracy.DEPTHS["all"] == accuracy.BLOCKS
    assert {name.split()[-1] for name in ARMS if name.startswith("MobileTL")} == set(accuracy.DEPTHS)


def arms(mobiletl: dict[str, tuple[float, float]], tuned: dict[str, tuple[float, float]]) -> dict[str, Arm]:
    """Arms of (accuracy, KiB)."""
    found = {f"MobileTL {key}": Arm(1e-3, (each[0],) * 3, each[1]) for key, each in mobiletl.items()}
    return found | {f"fine-tuning {key}": Arm(1e-3, (each[0],) * 3, each[1]) for key, each in tuned.items()}


def test_the_curve_names_what_lies_above_it() -> None:
    mine = {"1": (70.0, 10.0), "2": (69.0, 15.0), "3": (75.0, 20.0)}
    assert accuracy.curve(arms(mine, {}), 15.0) == 72.5
    assert accuracy.above_curve(arms(mine, {"1": (72.4, 15.0), "2": (74.0, 25.0), "3": (75.0, 50.0)})) == []
    assert accuracy.above_curve(arms(mine, {"1": (72.6, 15.0)})) == ["fine-tuning 1"]
    assert accuracy.above_curve(arms(mine, {"1": (75.1, 20.0)})) == ["fine-tuning 1"]
    assert accuracy.above_curve(arms(mine, {"1": (76.0, 90.0)})) == []
    assert accuracy.above_curve(arms(mine, {"1": (60.0, 5.0)})) == ["fine-tuning 1"]


def test_the_rows_follow_from_the_arms() -> None:
    one = Arm(1e-3, (70.0, 71.0, 72.0), 10.0)
    every = dict.fromkeys(ARMS, one)
    every["fine-tuning 3"] = replace(one, accuracy=(71.5, 71.6, 73.9), kept_kib=10.0)
    found = accuracy.outcomes(every)
    assert set(found) == {row.id for row in accuracy.rows()}
    assert found["accuracy-3"].ours.values == pytest.approx((1.5, 0.6, 1.9))
    assert not held(found, "accuracy-3")
    assert held(found, "accuracy-1")
    assert found["pareto"].ours.values == (1.0,)


def test_without_data_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HAVERSACK_DATA", raising=False)
    with pytest.raises(Unavailable, match="HAVERSACK_DATA"):
        _data.read(_data.AFTER)


def test_halves_share_no_class() -> None:
    assert not set(_data.BEFORE) & set(_data.AFTER)


def test_pictures_are_read_by_class_and_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From a folder in CIFAR-10's form: the numbers follow the order that was asked for."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow (pip install haversack[vision])")
    for part, count in (("train", 3), ("test", 2)):
        for shade, name in enumerate(("cat", "dog", "frog")):
            folder = tmp_path / "pictures" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture = np.full((32, 32, 3), 60 * shade + number, np.uint8)
                image.fromarray(picture).save(folder / f"{number:04}.png")
    monkeypatch.setattr(_data, "local_path", lambda name: tmp_path / "pictures")
    monkeypatch.setattr(_data, "TRAIN", 2)
    train, test = _data.read(("frog", "cat"))
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert train.pictures[:, 0, 0, 0].tolist() == [120, 121, 0, 1]
    assert (len(test), test.pictures.shape[1:]) == (4, (32, 32, 3))
