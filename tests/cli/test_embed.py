"""`haversack embed` from outside: records, what is written, refusals in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from haversack.cli import main
from haversack.cli._records import OUTPUTS

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


def said(name: str, line: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command printed under --json, as its record."""
    assert main([*line, "--json"]) == 0
    out = capsys.readouterr().out
    msgspec.json.decode(out, type=OUTPUTS[name])
    return json.loads(out)


def test_control_learns_follows_and_writes_c(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "c"
    line = ["embed", "control", "spring-cubic", "-o", str(folder), "--seconds", "30", "--epochs", "60"]
    found = said("embed-control", line, capsys)
    assert found["tracking"]["rmse_m"] < 0.05 and found["c"]["difference"] < 0.05
    names = {path.name for path in folder.iterdir()}
    assert {"control.c", "control.h", "main.c", "tracking.svg", "report.json"} <= names
    assert (folder / "tracking.svg").read_text().startswith("<svg")
    points = tmp_path / "points.csv"
    points.write_text("x\n" + "0.1\n" * 20)
    found = said("embed-control", [*line, "--reference", str(points)], capsys)
    assert found["warnings"] == []
    points.write_text("x\n" + "99\n" * 20)
    found = said("embed-control", [*line, "--reference", str(points)], capsys)
    assert "the reference leaves what the training log reached" in found["warnings"][0]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (["control", "sprung"], "plant 'sprung' is not known"),
        (["control", "tendon", "--reference", "sine"], "is a reference of the spring"),
        (["control", "tendon", "--reference", "eight"], "reference 'eight' is not known"),
        (["control", "spring", "--moves", "9"], "Nu=9 inputs do not fit a horizon of N2=5 ticks"),
        (["control", "spring", "--network", "gru6"], "network 'gru6' is not known"),
        (["build", "nothing.h5"], "nothing.h5 is not a file"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(
    line: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", *line, "-o", str(tmp_path / "c")]) == 2
    error = capsys.readouterr().err
    assert text in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "c").exists()


def test_a_reference_file_that_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = tmp_path / "points.csv"
    for text, message in (("1,2\n", "holds 2 numbers"), ("0.1\nx\n", "row 2"), ("", "holds no points")):
        points.write_text(text)
        assert main(["embed", "control", "spring", "-o", str(tmp_path), "--reference", str(points)]) == 2
        assert message in capsys.readouterr().err


def test_build_and_verify(
    data: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(data("models/mlperf-tiny/ad01_int8.tflite"))
    folder = str(tmp_path / "c")
    built = said("embed-build", ["embed", "build", model, "-o", folder], capsys)
    assert built["kind"] == "int8" and built["arena_bytes"] == 768 and built["macs"] == 264_192
    checked = said("embed-verify", ["embed", "verify", folder], capsys)
    assert checked["holds"] and all(run["differing"] == 0 for run in checked["builds"])
    assert main(["embed", "build", model, "-o", str(tmp_path / "d"), "--ram-kib", "0.25"]) == 2
    assert "KiB of RAM (--ram-kib 0.25); at the peak" in capsys.readouterr().err


def test_build_what_learns_and_verify(
    data: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(data("models/mlperf-tiny/kws_ref_model_float32.tflite"))
    folder = str(tmp_path / "c")
    line = ["embed", "build", model, "-o", folder, "--train", "head", "--precision", "fp16", "--classes", "3"]
    built = said("embed-build", [*line, "--golden", "1", "--rate", "0.001"], capsys)
    learns = built["training"]
    assert built["kind"] == "fp16" and learns["learned_numbers"] == 3 * 65 == learns["learned_bytes"] // 2
    checked = said("embed-verify", ["embed", "verify", folder], capsys)
    assert checked["holds"] and all(run["differing"] == 0 for run in checked["builds"])
    assert main([*line, "--ram-kib", "8"]) == 2
    assert "KiB of RAM" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line, said",
    [
        (["--train", "only:nose"], "nose is no tensor of"),
        (["--train", "all", "--precision", "fp8"], "precision=fp8"),
        (["--train", "all", "--kernels", "3x3"], "kernels=3x3 is not supported"),
        (["--train", "all", "--wide", "nose", "--precision", "bf16"], "nose is no layer"),
        (["--precision", "fp16"], "--precision is for networks that learn"),
        (["--train", "scheme-that-is-not-there.json"], "holds no scheme"),
    ],
)
def test_mistakes_about_what_learns_exit_with_2(
    line: list[str],
    said: str,
    data: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = str(data("models/mlperf-tiny/kws_ref_model_float32.tflite"))
    assert main(["embed", "build", model, "-o", str(tmp_path / "c"), *line]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
