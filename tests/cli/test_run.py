"""`haversack run`: what it prints, where it ends, and how it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from haversack.cli import main
from haversack.models._bundled import bundled_names

KEYS = {"text", "tokens", "prompt_tokens", "stop", "first_token_ms", "tokens_per_s"}
KEYS |= {"ram_mib", "plan", "seed", "machine"}
PROGRAM = [sys.executable, "-c", "import sys; from haversack.cli import main; sys.exit(main())", "run"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.run.conftest import CONFIG, write_folder

    return str(write_folder(tmp_path_factory.mktemp("cli") / "tiny", CONFIG))


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert main(["run", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_the_record(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = said(capsys, model, "--prompt", "the one", "--max-tokens", "9", "--ignore-end")
    assert set(record) == KEYS
    assert record["tokens"] == 9 and record["stop"] == "max-tokens" and record["seed"] == 0
    assert record["prompt_tokens"] == 4
    assert set(record["ram_mib"]) == {"planned", "measured"}
    assert record["plan"]["residency"] == "mapped" and record["plan"]["activations"] == "f32"
    assert {"cpu", "cores"} <= set(record["machine"])


def test_people_get_the_text_and_on_the_other_stream_how_it_went(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [model, "--prompt", "the one", "--max-tokens", "9", "--ignore-end"]
    record = said(capsys, *options)
    assert main(["run", *options]) == 0
    printed = capsys.readouterr()
    assert printed.out == record["text"] + "\n"
    assert "planned" in printed.err and "measured" in printed.err and "tokens/s" in printed.err
    assert "residency mapped" in printed.err


def test_the_text_comes_from_an_option_a_file_or_standard_input(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("the one")
    plain = said(capsys, model, "--prompt", "the one", "--max-tokens", "5")
    assert said(capsys, model, str(tmp_path / "text.txt"), "--max-tokens", "5")["text"] == plain["text"]
    done = subprocess.run(
        [*PROGRAM, model, "--max-tokens", "5", "--json"], input=b"the one", capture_output=True, check=True
    )
    assert json.loads(done.stdout)["text"] == plain["text"]
    assert said(capsys, model, "--prompt", "", "--max-tokens", "3", "--ignore-end")["prompt_tokens"] == 1


def test_options_reach_the_engine(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain = said(capsys, model, "--prompt", "the one", "--max-tokens", "12", "--ignore-end")
    options = ["--residency", "streamed", "--attention", "sliding:window=99", "--prefill", "chunked:tokens=2"]
    options += [
        "--decode",
        "linear-draft:length=2",
        "--draft",
        model,
        "--threads",
        "1",
        "--context-length",
        "64",
    ]
    other = said(capsys, model, "--prompt", "the one", "--max-tokens", "12", "--ignore-end", *options)
    assert other["text"] == plain["text"]
    plan = other["plan"]
    assert (
        plan["residency"] == "streamed" and plan["attention"] == "sliding:window=99" and plan["threads"] == 1
    )
    drawn = ["--temperature", "1", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.01"]
    first = said(
        capsys, model, "--prompt", "a", *drawn, "--seed", "3", "--cache-type", "int8", "--ignore-end"
    )
    again = said(
        capsys, model, "--prompt", "a", *drawn, "--seed", "3", "--cache-type", "int8", "--ignore-end"
    )
    assert first["text"] == again["text"] and first["seed"] == 3


def test_a_tree_of_drafts_says_what_it_did(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--prompt", "the one", "--max-tokens", "12", "--ignore-end"]
    plain = said(capsys, model, *given)
    drafted = said(
        capsys, model, *given, "--decode", "tree:alpha=1e-5,branch_threshold=1e-3", "--draft", model
    )
    assert drafted["text"] == plain["text"] and "drafting" not in plain
    counts = drafted["drafting"]
    assert counts["passes"] < 11 and counts["accepted"] + counts["passes"] >= 11
    assert counts["tokens_a_pass"] > 1 and 0 < counts["acceptance"] <= 1
    done = subprocess.run(
        [*PROGRAM, model, *given, "--decode", "tree", "--draft", model],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "drafts accepted" in done.stderr and "tokens a pass" in done.stderr


def test_stop_and_log_probabilities(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain = said(
        capsys, model, "--prompt", "the one", "--ignore-end", "--log-probabilities", "--max-tokens", "12"
    )
    assert set(plain) == KEYS | {"log_probabilities"}
    assert len(plain["log_probabilities"]) == 12
    assert all(entry["log_probability"] <= 0 for entry in plain["log_probabilities"])
    part = plain["text"][3:5]
    ended = said(capsys, model, "--prompt", "the one", "--ignore-end", "--stop", part, "--max-tokens", "12")
    assert ended["stop"] == "stop-text" and ended["text"] == plain["text"][: plain["text"].index(part)]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--ram-mib", "3"], "ram_mib"),
        (["--max-tokens", "0"], "max_tokens"),
        (["--temperature", "-1"], "temperature"),
        (["--residency", "maped"], "residency"),
        (["--draft", "nothing"], "model"),
        (["--context-length", "2"], "prompt"),
        (["--cache-type", "f8"], "cache_type"),
        (["--stop", ""], "stop"),
    ],
)
def test_mistakes_end_in_a_record(options: list[str], field: str, model: str, capsys: Any) -> None:
    record = said(capsys, model, "--prompt", "the one and", *options, code=2)
    assert record["field"] == field
    assert "\n" not in record["error"]


def test_models_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for name in (str(tmp_path / "empty"), str(tmp_path / "absent"), "cod"):
        assert said(capsys, name, "--prompt", "a", code=2)["error"]


def test_text_that_is_none(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    assert said(capsys, model, str(tmp_path / "bytes"), code=2)["field"] == "input"
    assert said(capsys, model, str(tmp_path / "absent"), code=2)["field"] == "input"
    (tmp_path / "text").write_text("a")
    assert said(capsys, model, str(tmp_path / "text"), "--prompt", "b", code=2)["field"] == "prompt"


def test_an_interrupt_ends_cleanly(model: str) -> None:
    process = subprocess.Popen(
        [*PROGRAM, model, "--prompt", "a", "--max-tokens", "500", "--ignore-end", "--residency", "streamed"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    os.read(process.stdout.fileno(), 1)  # it is writing
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in error and b"interrupted" in error
    assert time.monotonic() - started < 10


@pytest.mark.skipif("code" not in bundled_names(), reason="the bundled model is not trained yet")
def test_the_bundled_model_writes_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    record = said(capsys, "code", "--prompt", "def read_json(path):", "--max-tokens", "24")
    assert record["text"]
