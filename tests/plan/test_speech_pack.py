"""Packing speech models: the pack runs, and loses what it says it lost; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.run.speech import sound, write_speech

from haversack.cli import main
from haversack.cli._records import OUTPUTS
from haversack.core.pack import Pack
from haversack.formats.wav import write_wav
from haversack.plan._speech_job import MEASURE
from haversack.plan._speech_quality import audio_files, differing, say
from haversack.run._speech import Speech


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("speech")
    for family in ("whisper", "moonshine"):
        write_speech(at / family, family)
    for index in range(8):
        for name in ("first", "second"):
            (at / name).mkdir(exist_ok=True)
            write_wav(at / name / f"{index}.wav", sound(0.8, index + 20 * (name == "second")), 16000)
    (at / "silent").mkdir()
    write_wav(at / "silent" / "a.wav", sound(0.3), 16000)
    (at / "broken").mkdir()
    (at / "broken" / "a.wav").write_bytes(b"RIFF\0\0\0\0WAVE")
    (at / "empty").mkdir()
    return at


def packed(capsys: pytest.CaptureFixture[str], folder: Path, goal: Path, *line: str, code: int = 0) -> Any:
    base = ["pack", str(folder), "-d", "raspberry-pi-zero-2w", "-o", str(goal), "--effort", "0", "--json"]
    assert main([*base, *line]) == code
    said = capsys.readouterr().out
    if code == 0:
        msgspec.json.decode(said.encode(), type=OUTPUTS["pack"])
    return json.loads(said)


@pytest.mark.parametrize("family", ["whisper", "moonshine"])
@pytest.mark.parametrize("precision", ["round-to-nearest:bits=8", "gptq:bits=4,group=32"])
def test_a_speech_model_as_a_pack(
    family: str, precision: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goal = tmp_path / "it.pack"
    sounds = ["--calibration", str(folder / "first"), "--evaluation", str(folder / "second")]
    record = packed(capsys, folder / family, goal, "--precision", precision, *sounds, "--seed", "3")
    (measured,) = [one for one in record["candidates"] if one["source"] == "measured"]
    pack = Pack.open(goal)
    assert pack.record.kind == "speech" and pack.record.plan["precision"] == precision
    (measurement,) = pack.record.measurements
    assert measurement["quality"][0]["value"] == pytest.approx(measured["quality"]["loss"], abs=1e-4)
    with Speech.open(folder / family) as plain, Speech.open(goal) as speech:
        texts = [say(plain, np.float32(sound(0.8, 20 + index))) for index in range(8)]
        assert differing(plain, texts) == 0.0
        assert differing(speech, texts) == pytest.approx(measured["quality"]["loss"], abs=0.1)
        assert speech.rules == plain.rules and speech.activations == record["plan"]["activations"]
    assert main(["check", str(goal)]) == 0
    capsys.readouterr()
    assert main(["run", str(goal), "--audio", str(folder / "first" / "0.wav"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["plan"]["precision"] == precision
    assert said["ram_mib"]["planned"] < measured["ram_mib"] + 40


def test_without_sound_the_loss_stays_predicted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = packed(capsys, folder / "moonshine", tmp_path / "it.pack")
    names = {one["plan"]["precision"].partition(":")[0] for one in record["candidates"]}
    assert "round-to-nearest" in names and "gptq" not in names and "keep" in names
    assert not Pack.open(tmp_path / "it.pack").record.measurements[0].get("quality")
    assert "predicted, not measured" in (tmp_path / "it.pack" / "report.html").read_text()


def test_a_quarter_of_the_calibration_sound_is_kept_apart(folder: Path) -> None:
    first, second = audio_files(folder / "first", None)
    assert len(first) == 6 and len(second) == 2 and not {*first} & {*second}
    first, second = audio_files(folder / "first", folder / "second")
    assert len(first) == len(second) == 8
    assert audio_files(None, None) == ([], [])


def compared(capsys: pytest.CaptureFixture[str], folder: Path, *line: str) -> str:
    sounds = ["--calibration", str(folder / "first"), "--evaluation", str(folder / "second")]
    assert main(["pack", str(folder / "whisper"), "--compare", *sounds, *line]) == 0
    return capsys.readouterr().out


def test_methods_are_compared_on_a_speech_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quality, bytes, speed, bit operations, time and peak memory of every setting; nothing is written."""
    monkeypatch.chdir(tmp_path)
    said = compared(capsys, folder, "--precision", "gptq", "--json")
    msgspec.json.decode(said.encode(), type=OUTPUTS["pack-compare"])
    record = json.loads(said)
    assert record["quality"] == MEASURE and record["pack"] is None
    rows = {row["setting"]: row for row in record["rows"]}
    assert list(rows) == ["w16a16", "w8a8", "w4a16", "w3a16", "w4a8"]
    plain = rows["w16a16"]
    for name, share in (("w8a8", 1 / 4), ("w4a16", 1 / 4), ("w3a16", 3 / 16), ("w4a8", 1 / 8)):
        row = rows[name]
        operations = row["bit_operations"]
        assert operations["matrices"] == share * plain["bit_operations"]["matrices"]
        assert operations["matrices"] < operations["all"] < plain["bit_operations"]["all"]
        assert row["measured"]["storage_mib"] < plain["measured"]["storage_mib"]
    for row in rows.values():
        measured, packing = row["measured"], row["packing"]
        assert row["reason"] is None and measured["source"] == "measured"
        assert 0 <= measured["quality"]["loss"] <= 1 and measured["tokens_per_s"]["here"] > 0
        assert packing["seconds"] > 0
        assert 20 < packing["ram_mib"]["measured"] <= packing["ram_mib"]["planned"]
    lost = {name: row["measured"]["quality"]["loss"] for name, row in rows.items()}
    assert lost["w16a16"] <= lost["w8a8"] <= lost["w3a16"] and lost["w3a16"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("columns", [80, 220])
def test_what_is_for_text_alone_says_so_in_the_table(
    columns: int,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One table where it fits, two where it does not: results, then costs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(columns))
    out = compared(capsys, folder, "--precision", "mobilequant:bits=8")
    *table, reason = (line for line in out.splitlines() if "a16 " in line or "a8 " in line)
    assert [line.split()[:2] for line in table[:2]] == [
        ["w16a16", "keep:kind=f16"],
        ["w8a8", "mobilequant:bits=8"],
    ]
    missing = [line.split()[2:] for line in table[1::2]]
    assert missing == ([["-"] * 9] if columns == 220 else [["-"] * 5, ["-"] * 4])
    assert all(len(line) <= columns for line in table)
    assert reason.startswith("w8a8 mobilequant:bits=8: mobilequant does not know the graph of block 0")
    assert f"quality: {MEASURE}" in out and "states) a second" in out


@pytest.mark.parametrize(
    ("line", "field", "said"),
    [
        (["--precision", "gptq"], "calibration", "--calibration FOLDER"),
        (["--precision", "awq", "--calibration", "{}/empty"], "calibration", "no sound file"),
        (["--precision", "gptq", "--calibration", "{}/none"], "calibration", "does not exist"),
        (["--precision", "gptq", "--calibration", "{}/silent"], "calibration", "too short"),
        (["--precision", "gptq", "--calibration", "{}/broken"], "path", "ends before"),
        (["--precision", "keep", "--evaluation", "{}/silent"], "evaluation", "too short"),
        (["--residency", "streamed"], "residency", "mapped, copied"),
        (["--cache-type", "f64"], "cache_type", "f32, f16, int8"),
        (["--activations", "int8-fast"], "activations", "int8"),
        (["--ram-mib", "3"], "ram_mib", "ram"),
        (["--requantize", "int8"], "requantize", "GGUF"),
    ],
)
def test_what_is_refused(
    line: list[str], field: str, said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [part.replace("{}", str(folder)) for part in line]
    record = packed(capsys, folder / "whisper", tmp_path / "it.pack", *parts, code=2)
    assert record["field"] == field and said in record["error"] and "\n" not in record["error"]
    assert not (tmp_path / "it.pack").exists()
