"""`haversack sense forecast`: from a table to a forecast, a backtest, a pack, a picture; bad tables."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest

from haversack.cli import main
from haversack.cli._records import OUTPUTS


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    hours = np.arange(24 * 60)
    wave = np.sin(2 * np.pi * hours / 24) + 0.5 * np.sin(2 * np.pi * hours / 12 + 1)
    path = tmp_path_factory.mktemp("table") / "pump.csv"
    start = np.datetime64("2024-02-01T00:00")
    rows = [
        f"{start + np.timedelta64(int(at), 'h')},{20 + 5 * wave[at] + random.normal():.3f},{wave[at] * 9:.3f}"
        for at in hours
    ]
    path.write_text("time,flow,heat\n" + "\n".join(rows) + "\n")
    return path


def said(capsys: pytest.CaptureFixture[str], line: list[str]) -> dict:
    assert main([*line, "--json"]) == 0
    out = capsys.readouterr().out
    msgspec.json.decode(out, type=OUTPUTS["sense-forecast"])
    return json.loads(out)


def test_a_table_is_forecast_and_the_pack_forecasts_the_same(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: str(tmp_path / name) for name in ("m.pack", "f.csv", "m.c", "p.svg")}
    line = [
        "sense",
        "forecast",
        str(csv),
        "--horizon",
        "48",
        "-o",
        files["m.pack"],
        "--ahead",
        files["f.csv"],
    ]
    found = said(capsys, [*line, "--c", files["m.c"], "--plot", files["p.svg"]])
    assert found["period"] == 24 and found["step"] == 3600 and found["channels"] == ["flow", "heat"]
    errors = {one["name"]: one["mse"] for one in found["backtest"]}
    assert list(errors) == ["mixlinear", "sparsetsf", "dlinear", "seasonal-naive"]
    assert errors["mixlinear"] < 0.75 * errors["seasonal-naive"]
    assert len(found["forecast"]) == 48 and found["forecast"][0]["time"] == "2024-04-01 00:00:00"
    assert found["files"]["pack"]["nbytes"] == Path(files["m.pack"]).stat().st_size < 400
    drawn = ElementTree.fromstring(Path(files["p.svg"]).read_text())
    assert len(drawn.findall(".//{http://www.w3.org/2000/svg}polyline")) == 4
    again = said(capsys, ["sense", "forecast", str(csv), "--pack", files["m.pack"]])
    ours, theirs = ([step["values"] for step in one["forecast"]] for one in (again, found))
    assert np.abs(np.array(ours) - np.array(theirs)).max() < 0.1
    assert main(["check", files["m.pack"]]) == 0
    Path(files["m.pack"]).write_bytes(Path(files["m.pack"]).read_bytes()[:-9])
    assert main(["check", files["m.pack"]]) == 2


def test_for_people_it_is_a_table(csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sense", "forecast", str(csv), "--horizon", "24", "--no-compare"]) == 0
    out = capsys.readouterr().out
    assert "mixlinear" in out and "sparsetsf" not in out and "learned numbers" in out


@pytest.mark.parametrize(
    ("line", "field", "wanted"),
    [
        (["--horizon", "500"], "horizon", "longer than the table allows"),
        (["--horizon", "0"], "horizon", "horizon=0"),
        ([], "horizon", "add --horizon"),
        (["--horizon", "24", "--seq", "100", "--period", "24"], "seq", "not a multiple"),
        (["--horizon", "24", "--seq", "96", "--lpf", "9"], "bins", "bins=9"),
        (["--horizon", "24", "--model", "arima"], "model", "model=arima"),
        (["--horizon", "24", "--split", "1,2"], "split", "not three numbers"),
        (["--horizon", "24", "--split", "0.9,0.2,0.1"], "split", "not possible"),
        (["--horizon", "24", "--channels", "flaw"], "channels", "did you mean flow"),
        (["--horizon", "24", "--impute", "zero"], "impute", "impute=zero"),
        (["--horizon", "24", "--model", "dlinear", "--c", "x.c"], "model", "only mixlinear"),
        (["--pack", "none.pack"], "pack", "cannot be read"),
        (["--pack", "none.pack", "--horizon", "3"], "horizon", "does not go with --pack"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    csv: Path, line: list[str], field: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sense", "forecast", str(csv), *line, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert wanted in error["error"] and error["field"] == field


def test_a_table_of_another_step_is_not_for_this_pack(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = str(tmp_path / "m.pack")
    assert main(["sense", "forecast", str(csv), "--horizon", "24", "--no-compare", "-o", pack, "--json"]) == 0
    capsys.readouterr()
    other = tmp_path / "o.csv"
    other.write_text("t,a\n" + "".join(f"{at * 60},{at % 24}\n" for at in range(2000)))
    assert main(["sense", "forecast", str(other), "--pack", pack]) == 2
    assert "step of 60" in capsys.readouterr().err
