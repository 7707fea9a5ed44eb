"""The command line: discovery, help, and one sentence and an exit code for every error."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from haversack.cli import _app, _output, main
from haversack.core.errors import UserError

HAVERSACK = [sys.executable, "-c", "import sys; from haversack.cli import main; sys.exit(main())"]


@pytest.fixture
def scratch_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands of this test alone; write `NAME.py` there and call it."""
    import haversack.cli

    folder = tmp_path / "cli"
    folder.mkdir()
    monkeypatch.setattr(_app, "_FOLDER", folder)
    monkeypatch.setattr(haversack.cli, "__path__", [str(folder), *haversack.cli.__path__])
    yield folder
    for name in [name for name in sys.modules if name.startswith("haversack.cli.scratch")]:
        del sys.modules[name]


def write(folder: Path, name: str, body: str) -> None:
    (folder / f"{name}.py").write_text(
        '"""Scratches. Twice."""\nimport os\nimport typer\nfrom haversack.cli._output import Json\n' + body
    )


def test_help_names_every_command_and_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for name in _app.command_names():
        assert f"  {name}" in said
        assert _app.summary(name), f"cli/{name}.py has no docstring"


def test_every_command_answers_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in _app.command_names():
        assert main([name, "--help"]) == 0
        assert f"haversack {name}" in capsys.readouterr().out


def test_a_summary_is_the_first_sentence_of_the_docstring(scratch_command: Path) -> None:
    write(scratch_command, "scratch_one", "def command() -> None: ...\n")
    (scratch_command / "_scratch_machinery.py").write_text("")
    assert _app.command_names() == ["scratch-one"]
    assert _app.summary("scratch-one") == "Scratches"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from haversack import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"haversack {__version__}"


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sistems"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "did you mean systems?" in said.err
    assert said.err.count("\n") == 1


def test_an_option_before_the_command_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "systems"]) == 2
    record = json.loads(capsys.readouterr().out)
    assert record["given"] == "--json"
    assert "haversack COMMAND --json" in record["error"]


@pytest.mark.parametrize(
    ("line", "field", "nearest"),
    [
        (["systems", "--stat", "works"], "--stat", "--state"),
        (["systems", "--state", "workz"], "state", "works"),
        (["bench"], "system", None),
        (["devices", "lst"], None, None),
    ],
)
def test_a_line_that_cannot_be_read_is_a_record_under_json(
    line: list[str], field: str | None, nearest: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line, "--json"]) == 2
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert said.err == ""
    assert list(record) == ["error", "field", "given", "nearest"]
    assert record["nearest"] == nearest
    if field is not None:
        assert record["field"] == field


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (
            "raise __import__('haversack.core.errors').core.errors.UserError('mend it.', field='x')",
            2,
            "mend it.",
        ),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        ("raise typer.Abort", 130, "interrupted"),
        ("raise ZeroDivisionError('a\\nb')", 1, "an error of ours, not yours (ZeroDivisionError: a b)"),
        (f"raise OSError({errno.ENOSPC}, 'no', '/x/y')", 2, "/x/y: the disk is full."),
        ("open('/does/not/exist')", 2, "/does/not/exist: it does not exist."),
        ("raise MemoryError", 2, "not enough free memory"),
        ("raise typer.Exit(2)", 2, ""),
        ("raise SystemExit(3)", 3, ""),
    ],
)
def test_every_error_ends_in_one_sentence_and_a_code(
    body: str, code: int, said: str, scratch_command: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(scratch_command, "scratch_two", f"def command(json: Json = False) -> None:\n    {body}\n")
    assert main(["scratch-two"]) == code
    plain = capsys.readouterr()
    assert plain.out == ""
    assert "Traceback" not in plain.err
    assert said in plain.err
    assert plain.err.count("\n") == (1 if said else 0)
    assert main(["scratch-two", "--json"]) == code
    structured = capsys.readouterr()
    assert structured.err == ""
    if said:
        assert said in json.loads(structured.out)["error"]
    else:
        assert structured.out == ""


def test_debugging_shows_where(
    scratch_command: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(scratch_command, "scratch_three", "def command() -> None:\n    raise ZeroDivisionError\n")
    monkeypatch.setenv("HAVERSACK_DEBUG", "1")
    assert main(["scratch-three"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_progress_is_silent_under_json(scratch_command: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = "from haversack.core import progress\ndef command(json: Json = False) -> None:\n"
    write(scratch_command, "scratch_four", body + "    print(progress._quiet.get())\n")
    assert main(["scratch-four", "--json"]) == 0
    assert main(["scratch-four"]) == 0
    assert capsys.readouterr().out.split() == ["True", "False"]


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [*HAVERSACK, "systems", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(timeout=60) in (0, 141)
    assert said == b""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_command_clean_up(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """Real signals to a real process: its `finally` runs, its exit code tells, no traceback."""
    started, cleaned = tmp_path / "started", tmp_path / "cleaned"
    program = (
        "import sys, time, types, pathlib\n"
        "module = types.ModuleType('haversack.cli.scratch'); sys.modules[module.__name__] = module\n"
        "def command() -> None:\n"
        "    try:\n"
        f"        pathlib.Path({str(started)!r}).touch()\n        time.sleep(60)\n"
        f"    finally:\n        pathlib.Path({str(cleaned)!r}).touch()\n"
        "module.command = command\n"
        "from haversack.cli import _app\n"
        "_app.command_names = lambda: ['scratch']\n"
        "sys.exit(_app.main(['scratch']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        os.sched_yield()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert cleaned.exists()
    assert "Traceback" not in said


def test_json_writes_what_commands_hold(capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    from haversack.core.memory import MemoryPlan

    _output.print_json(
        {"p": Path("x"), "n": np.float32(0.5), "a": np.arange(2), "m": MemoryPlan((("w", 2**20),))}
    )
    assert json.loads(capsys.readouterr().out) == {
        "p": "x",
        "n": 0.5,
        "a": [0, 1],
        "m": {"lines": [["w", 1048576]]},
    }


def test_a_narrow_table_still_says_what_its_rows_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    numbers = [f"n{index}" for index in range(3)]
    _output.table(("name", *numbers), [("round-to-nearest", *["1234567.8"] * 3)], right=numbers)
    out = capsys.readouterr().out
    assert "name" in out and "round-to-nea" in out and "rest" in out


def test_a_table_keeps_every_cell_whole_where_no_terminal_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # which says that somebody looks
    long = "x" * 120
    _output.table(("name", "n"), [(long, 3), ("[bold]", 4)], right=("n",))
    said = capsys.readouterr().out
    assert long in said
    assert "[bold]" in said


def test_user_errors_keep_their_fields() -> None:
    code, record = _output._judge(UserError("no.", field="a", given=1, nearest=2), "x")
    assert (code, record) == (2, {"error": "no.", "field": "a", "given": 1, "nearest": 2})
