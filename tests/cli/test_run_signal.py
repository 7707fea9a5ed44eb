"""`haversack run` of packs of one file: the steps behind a table, a prediction a row; `check`, `embed build`
and the other commands beside it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from haversack.cli import main
from haversack.cli._records import OUTPUTS
from haversack.formats.series_csv import Series
from haversack.formats.small_pack import SmallPack
from haversack.models.series import DLinear, MixLinear, SeasonalNaive, SparseTSF
from haversack.models.series._forecaster import Forecaster
from haversack.models.series._saved import to_pack

START, STEP, ROWS = 1_700_000_000, 900, 96 * 12


@pytest.fixture(scope="module")
def load() -> np.ndarray:
    random = np.random.default_rng(5)
    quarter = np.arange(ROWS) * 2 * np.pi / 96
    wave = np.stack([np.sin(quarter), np.cos(quarter) + 0.3 * np.sin(3 * quarter)], 1)
    return np.round(400 + 90 * wave + random.normal(0, 2, wave.shape), 2)


def rows_of(values: np.ndarray, start: int = 0) -> str:
    lines = [
        f"{START + STEP * (start + at)}," + ",".join(f"{v:g}" for v in row) for at, row in enumerate(values)
    ]
    return "time,north,south\n" + "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, load: np.ndarray) -> tuple[Path, Path]:
    """(a table, the pack of a MixLinear that was fitted to it)."""
    folder = tmp_path_factory.mktemp("signal")
    (folder / "load.csv").write_text(rows_of(load))
    model = MixLinear(horizon=48, seq=96 * 4, period=96).fit(load)
    to_pack(model, step=STEP).write(folder / "load.pack")
    return folder / "load.csv", folder / "load.pack"


def said(capsys: pytest.CaptureFixture[str], *line: object) -> dict[str, Any]:
    assert main(["run", *map(str, line), "--json"]) == 0
    out = capsys.readouterr().out
    msgspec.json.decode(out, type=OUTPUTS["run-signal"])
    return json.loads(out)


def feed(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), "utf-8"))


def test_what_follows_a_table(
    files: tuple[Path, Path], load: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    table, pack = files
    found = said(capsys, pack, table)
    assert (found["task"], found["model"], found["rows"], found["columns"]) == (
        *("forecast", "mixlinear", ROWS),
        ["north", "south"],
    )
    times = [int(one["time"]) for one in found["forecast"]]
    assert times == [START + STEP * (ROWS + at) for at in range(48)]  # to the second, not 1.7e+09
    quarter = np.arange(ROWS, ROWS + 48) * 2 * np.pi / 96
    truth = 400 + 90 * np.stack([np.sin(quarter), np.cos(quarter) + 0.3 * np.sin(3 * quarter)], 1)
    made = np.array([one["values"] for one in found["forecast"]])
    assert np.abs(made - truth).max() < 10 and found["parameters"] > 50
    memory = found["ram_mib"]
    assert memory["planned"] > 0 and memory["measured"] < memory["planned"] + 16


@pytest.mark.parametrize("kind", [SparseTSF, DLinear, SeasonalNaive])
def test_every_forecaster_says_what_python_says(
    kind: type[Forecaster],
    files: tuple[Path, Path],
    load: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings: dict[str, int] = {"horizon": 10, "seq": 192}
    model = kind(**(settings if kind is DLinear else {**settings, "period": 96})).fit(load)
    to_pack(model, step=STEP).write(tmp_path / "m.pack", "f4")
    found = said(capsys, tmp_path / "m.pack", files[0])
    made = np.array([one["values"] for one in found["forecast"]])
    np.testing.assert_allclose(made, model.predict(load), rtol=1e-4)


def test_standard_input_and_a_table_for_people(
    files: tuple[Path, Path],
    load: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The answer on standard output is a table that can be read again; how it went is on standard error."""
    feed(monkeypatch, b"\xef\xbb\xbf" + rows_of(load[-500:], ROWS - 500).encode())
    assert main(["run", str(files[1])]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "time,north,south" and len(lines) == 49
    assert lines[1].startswith(f"{START + STEP * ROWS},") and "memory: planned" in shown.err
    assert "500 rows read" in shown.err
    whole = said(capsys, files[1], files[0])["forecast"][0]["values"]
    assert [float(cell) for cell in lines[1].split(",")[1:]] == pytest.approx(whole, rel=1e-6)


def test_gaps_are_filled_when_asked(
    files: tuple[Path, Path], load: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = rows_of(load).splitlines()
    del lines[700:704]  # a meter that was silent for an hour
    lines[900] = lines[900].rsplit(",", 1)[0] + ",NaN"
    table = tmp_path / "gaps.csv"
    table.write_text("\n".join(lines))
    assert main(["run", str(files[1]), str(table), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert error["field"] == "impute" and "9 numbers" in error["error"]
    found = said(capsys, files[1], table, "--impute", "linear")
    assert found["filled"] == 9 and len(found["forecast"]) == 48


def test_a_network_predicts_each_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((150, 2))
    labels = np.where(x[:, 0] * x[:, 1] > 0, "same", "other")
    table, pack = tmp_path / "t.csv", tmp_path / "m.pack"
    table.write_text(
        "a,b,y\n" + "".join(f"{a:.5f},{b:.5f},{y}\n" for (a, b), y in zip(x, labels, strict=True))
    )
    line = ["train", "cura", str(table), "--target", "y", "--task", "classify", "--steps", "400"]
    assert main([*line, "--restarts", "2", "-o", str(pack), "--json"]) == 0
    capsys.readouterr()
    found = said(capsys, pack, table)
    assert found["task"] == "classify" and found["columns"] == ["y"] and found["forecast"] is None
    assert np.mean(np.array(found["predictions"]) == labels) > 0.85
    one = tmp_path / "one.csv"  # a single row, without the target
    one.write_text("b,a\n2.0,1.5\n")
    assert said(capsys, pack, one)["predictions"] == ["same"]
    assert main(["run", str(pack), str(one)]) == 0
    assert capsys.readouterr().out == "y\nsame\n"
    assert main(["run", str(pack), str(one), "--impute", "linear"]) == 2
    assert "for forecasters" in capsys.readouterr().err


def test_the_same_file_for_check_and_embed_build(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(files[1]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"] is True
    assert main(["embed", "build", str(files[1]), "-o", str(tmp_path / "c"), "--json"]) == 0
    assert (tmp_path / "c" / "network.c").is_file()


def other_table(folder: Path, kind: str, load: np.ndarray) -> list[str]:
    lines = rows_of(load).splitlines()
    if kind == "short":
        lines = lines[:200]
    elif kind == "hourly":
        lines = lines[:1] + lines[1::4]
    elif kind == "shuffled":
        lines[500], lines[501] = lines[501], lines[500]
    elif kind == "skewed":
        lines[500] = str(START + STEP * 499 + 60) + lines[500][lines[500].index(",") :]
    elif kind == "words":
        lines = ["hello", "world"]
    (folder / "t.csv").write_text("\n".join(lines))
    return [str(folder / "t.csv")]


@pytest.mark.parametrize(
    ("kind", "more", "field", "wanted"),
    [
        ("short", [], "table", "looks back over 384"),
        ("hourly", [], "table", "step of 3600"),
        ("shuffled", [], "table", "sort the table by time"),
        ("skewed", [], "table", "equal steps"),
        ("words", [], "table", "one column"),
        ("", ["--impute", "zero"], "impute", "impute=zero"),
        ("", ["--prompt", "hello"], "prompt", "not for signal packs"),
        ("", ["--threads", "2"], "threads", "not for signal packs"),
        ("", ["--ram-mib", "3"], "ram_mib", "needs at least"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    kind: str,
    more: list[str],
    field: str,
    wanted: str,
    files: tuple[Path, Path],
    load: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["run", str(files[1]), *other_table(tmp_path, kind, load), *more, "--json"]
    assert main(line) == 2
    error = json.loads(capsys.readouterr().out)
    assert wanted in error["error"] and error["field"] == field


def test_packs_and_inputs_that_are_none(
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table, pack = files
    assert main(["run", str(pack), str(tmp_path / "none.csv")]) == 2
    assert "there is no table" in capsys.readouterr().err
    feed(monkeypatch, b"")
    assert main(["run", str(pack)]) == 2
    assert "standard input is empty" in capsys.readouterr().err
    feed(monkeypatch, b"\xff\xfe\x00")
    assert main(["run", str(pack), "-"]) == 2
    assert "not UTF-8" in capsys.readouterr().err
    other = tmp_path / "other.pack"
    SmallPack("mcu", "pump", {}, {}).write(other)
    assert main(["run", str(other), str(table)]) == 2
    assert "'pump', which is not run" in capsys.readouterr().err
    data = bytearray(pack.read_bytes())
    data[40] ^= 1
    (tmp_path / "bad.pack").write_bytes(data)
    assert main(["run", str(tmp_path / "bad.pack"), str(table)]) == 2
    assert "checksum" in capsys.readouterr().err
    assert main(["serve", str(pack)]) == 2
    assert "a pack of one file" in capsys.readouterr().err
    assert main(["run", "code", "--impute", "linear"]) == 2
    assert "--impute is for packs" in capsys.readouterr().err


def test_times_of_a_series_are_told_whole() -> None:
    series = Series(np.zeros((2, 1)), ("a",), 1_700_000_000.0, 900.0, False)
    assert series.time_of(3) == "1700002700"
    assert Series(np.zeros((2, 1)), ("a",), 0.1, 0.1, False).time_of(2) == "0.3"
