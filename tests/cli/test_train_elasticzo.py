"""`haversack train fit` by ElasticZO from outside: LeNet-5 in floats and in integers, kills, deltas."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.cli.said import said

from haversack.train.networks.integers import IntegerNetwork
from haversack.train.networks.layered import LayeredNetwork

PIL = pytest.importorskip("PIL.Image", reason="needs Pillow (pip install haversack[vision])")
MAIN = "import sys; from haversack.cli import main; sys.exit(main())"
CLASSES = ("down", "up")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`floats` and `whole`, LeNet-5s of two classes, and `data`, pictures with a bright half."""
    found = tmp_path_factory.mktemp("elastic")
    LayeredNetwork("lenet5", CLASSES, seed=1).write(found / "floats")
    IntegerNetwork("lenet5", CLASSES, seed=1).write(found / "whole")
    rng = np.random.default_rng(0)
    for name, rows in (("down", slice(14, 28)), ("up", slice(0, 14))):
        (found / "data" / name).mkdir(parents=True)
        for number in range(24):
            picture = rng.integers(0, 120, (28, 28)).astype(np.uint8)
            picture[rows] += 120
            PIL.fromarray(picture).save(found / "data" / name / f"{number}.png")
    return found


def fit(folder: Path, model: str, output: str, *more: str) -> list[str]:
    return [
        *("train", "fit", str(folder / model), "--data", str(folder / "data"), "--parameters", "all"),
        *("--epochs", "6", "--batch", "8", "--threads", "1", "--json", "-o", str(folder / output), *more),
    ]


@pytest.mark.parametrize(
    ("model", "gradient", "rate"),
    [
        ("floats", "elasticzo:backprop_layers=1", "0.05"),
        ("floats", "elasticzo:split=fc2,restore=copy", "0.05"),
        ("whole", "elasticzo-int8", "1"),
    ],
)
def test_it_learns_from_a_folder_of_pictures(
    model: str, gradient: str, rate: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goal = gradient.replace(":", "-")
    found = said(capsys, *fit(folder, model, goal, "--gradient", gradient, "--rate", rate))
    assert found["slots"]["gradient"] == gradient
    assert found["slots"]["precision"] == ("niti" if model == "whole" else "f32")
    held = found["held_out"]
    assert held["after"]["accuracy"] >= 0.9 and held["after"]["loss"] < held["before"]["loss"]


def test_full_zeroth_order_runs_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, *fit(folder, "floats", "zeroth", "--gradient", "zeroth", "--rate", "0.0005"))
    assert found["steps"] > 0 and found["loss"]["last"] < found["loss"]["first"] + 0.1


def test_a_network_of_integers_is_planned_for_by_itself(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = said(capsys, *fit(folder, "whole", "planned"))
    assert found["slots"]["gradient"] == "elasticzo-int8" and found["slots"]["precision"] == "niti"


def test_a_killed_training_ends_with_the_same_delta(folder: Path) -> None:
    def run(name: str, seconds: float | None) -> int:
        line = fit(folder, "floats", name, "--gradient", "elasticzo", "--checkpoint-seconds", "0")
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *line], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        if seconds is not None:
            state = folder / f"{name}.training"
            end = time.monotonic() + 60
            while time.monotonic() < end and not (state / "state.npz").exists() and process.poll() is None:
                time.sleep(0.02)
            process.kill()
        process.communicate()
        return process.returncode

    assert run("first", None) == 0
    run("second", 0.1)
    assert run("second", None) == 0
    first, second = (next((folder / name).glob("*.safetensors")) for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("model", "gradient", "field"),
    [
        ("floats", "elasticzo-int8", "gradient"),
        ("whole", "elasticzo", "gradient"),
        ("floats", "elasticzo:eps=0", "eps"),
        ("floats", "elasticzo:backprop_layers=6", "backprop_layers"),
        ("floats", "elasticzo:split=conv2.bias", "split"),
        ("floats", "elasticzo:eps=1e-9", "eps"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    model: str, gradient: str, field: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goal = f"none-{model}-{gradient.replace(':', '-')}"
    found = said(capsys, *fit(folder, model, goal, "--gradient", gradient), code=2)
    assert found["field"] == field and "\n" not in found["error"]
    assert not (folder / goal).exists()
