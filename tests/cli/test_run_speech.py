"""`haversack run` of speech models: a sound file in, what is said out, as text and as the record of its
schema."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.run.speech import sound, write_speech

from haversack.cli import main
from haversack.cli._records import OUTPUTS
from haversack.formats.wav import write_wav
from haversack.models.audio._sound import read_sound
from haversack.run._speech import Speech
from haversack.run._transcribe import Asked, transcribe


def record(capsys: pytest.CaptureFixture[str], *line: str) -> Any:
    assert main(["run", *line, "--json"]) == 0
    said = capsys.readouterr().out
    msgspec.json.decode(said.encode(), type=OUTPUTS["run-speech"])
    return json.loads(said)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    at = tmp_path_factory.mktemp("speech")
    made = {family: str(write_speech(at / family, family)) for family in ("whisper", "moonshine")}
    write_wav(at / "a.wav", sound(0.9), 16000)
    write_wav(at / "long.wav", np.concatenate([sound(1.3, 1, 8000), sound(1.3, 2, 8000)]), 8000)
    return {**made, "a": str(at / "a.wav"), "long": str(at / "long.wav")}


@pytest.mark.parametrize("family", ["whisper", "moonshine"])
def test_what_is_said(family: str, folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with Speech.open(folders[family]) as speech:
        wanted = transcribe(speech, read_sound(folders["a"]).samples)
    assert wanted.text and "<|" not in wanted.text
    assert main(["run", folders[family], "--audio", folders["a"]]) == 0
    printed = capsys.readouterr()
    assert printed.out == wanted.text + "\n"
    assert "0.9 s of sound" in printed.err and "planned" in printed.err and "note" not in printed.err
    said = record(capsys, folders[family], "--audio", folders["a"])
    assert said["text"] == wanted.text and said["tokens"] == len(wanted.tokens)
    assert said["windows"] == 1 and said["notes"] == [] and said["seconds"] == 0.9
    assert said["ram_mib"]["planned"] > 0 and "segments" not in said
    assert said["language"] == (None if family == "moonshine" else wanted.language)


def test_options_reach_the_model(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    samples = read_sound(folders["a"]).samples
    with Speech.open(folders["whisper"]) as speech:
        wanted = {
            "plain": transcribe(speech, samples),
            "german": transcribe(speech, samples, Asked("de")),
            "beams": transcribe(speech, samples, Asked(beams=4)),
            "short": transcribe(speech, samples, Asked(most=3)),
            "other": transcribe(speech, samples, Asked(task="translate")),
        }
    lines = {
        "plain": [],
        "german": ["--language", "German"],
        "beams": ["--beam", "4"],
        "short": ["--max-tokens", "3"],
        "other": ["--task", "translate"],
    }
    said = {
        name: record(capsys, folders["whisper"], "--audio", folders["a"], *line)
        for name, line in lines.items()
    }
    for name, one in said.items():
        assert one["text"] == wanted[name].text, name
    assert said["german"]["language"] == "de" and said["short"]["tokens"] <= 3
    assert len({one["text"] for one in said.values()}) > 2


def test_times_and_long_sound(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    said = record(capsys, folders["whisper"], "--audio", folders["long"], "--timestamps")
    assert said["notes"] == ["8000 samples a second were resampled to 16000"] and said["windows"] >= 3
    bounds = [(one["start"], one["end"]) for one in said["segments"]]
    assert len(bounds) >= 3 and bounds == sorted(bounds)
    assert all(0 <= start <= end <= said["seconds"] + 1.0 for start, end in bounds)
    assert main(["run", folders["whisper"], "--audio", folders["long"], "--timestamps"]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == len(bounds) and "resampled to 16000" in printed.err
    joined = " ".join(one["text"] for one in said["segments"])
    assert said["text"].replace(" ", "") == joined.replace(" ", "")


def test_memory_is_planned_and_a_budget_refused(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", folders["whisper"], "--audio", folders["a"], "--ram-mib", "20", "--json"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["field"] == "ram_mib" and said["nearest"] > 20


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["whisper"], "--audio FILE.wav"),
        (["whisper", "--audio", "none.wav"], "cannot be read"),
        (["whisper", "--audio", "a", "--language", "klingon"], "klingon"),
        (["whisper", "--audio", "a", "--task", "sing"], "transcribe, translate"),
        (["whisper", "--audio", "a", "--beam", "0"], "1 to 64"),
        (["whisper", "--audio", "a", "--max-tokens", "0"], "writes nothing"),
        (["whisper", "--audio", "a", "--prompt", "hello"], "--prompt is for models that read text"),
        (["whisper", "--audio", "a", "--temperature", "1"], "--temperature"),
        (["whisper", "--audio", "a", "--residency", "streamed"], "mapped, copied"),
        (["whisper", "--audio", "a", "--activations", "int4"], "int8-dynamic"),
        (["moonshine", "--audio", "a", "--timestamps"], "leave --timestamps out"),
        (["moonshine", "--audio", "a", "--language", "en"], "leave --language out"),
        (["moonshine", "--audio", "a", "--task", "translate"], "leave --task out"),
        (["code", "--audio", "a"], "are for speech models"),
        (["code", "--beam", "3", "--prompt", "x"], "are for speech models"),
    ],
)
def test_options_that_make_no_sense(
    line: list[str], said: str, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *(folders.get(part, part) for part in line)]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and printed.out == ""
