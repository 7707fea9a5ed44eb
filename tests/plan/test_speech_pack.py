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
