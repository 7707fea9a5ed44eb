"""`pack --seal`, `run --key`, `check --key`: what a person types, and what they may get wrong."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from haversack.cli import main
from haversack.cli._records import OUTPUTS, CheckOutput, RunOutput
from haversack.models._bundled import bundled_names

pytestmark = pytest.mark.skipif("code" not in bundled_names(), reason="the weights of code are not here")
PLAN = ["--precision", "round-to-nearest:bits=8", "--cache-type", "f16", "--effort", "1"]


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def key(tmp_path: Path) -> str:
    (tmp_path / "owner.key").write_text("5b" * 32 + "\n")
    return str(tmp_path / "owner.key")


def test_a_sealed_pack_is_made_checked_and_run(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = tmp_path / "code.pack"
    line = ["pack", "code", "-d", "laptop", "-o", str(pack), *PLAN, "--seal", "--key", key, "--json"]
    assert main(line) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["pack"] == str(pack)
    assert "sealed.store" in {path.name for path in pack.iterdir()}
    assert "weights.safetensors" not in {path.name for path in pack.iterdir()}
    assert "AES-256-GCM" in (pack / "report.html").read_text()
    for words, authentic in (([], None), (["--key", key], True)):
        assert main(["check", str(pack), *words, "--json"]) == 0
        said = msgspec.json.decode(capsys.readouterr().out, type=OUTPUTS["check"])
        assert isinstance(said, CheckOutput) and said.whole and said.authentic is authentic
    assert main(["check", str(pack)]) == 0
    assert "only --key KEYFILE tells" in capsys.readouterr().out
    ask = ["--prompt", "def add(a, b):", "--max-tokens", "8", "--ignore-end", "--json"]
    assert main(["run", str(pack), "--residency", "sealed", "--key", key, *ask]) == 0
    answer = msgspec.json.decode(capsys.readouterr().out, type=OUTPUTS["run"])
    assert isinstance(answer, RunOutput) and answer.tokens == 8
    assert main(["run", "code", "--activations", "f32", *ask]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--seal"], "key"),
        (["--key", "KEY"], "seal"),
        (["--seal", "--key", "absent.key"], "key"),
        (["--seal", "--key", "KEY", "--residency", "mapped"], "residency"),
        (["--seal", "--key", "KEY", "--compare"], "seal"),
        (["--residency", "sealed"], "residency"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_what_cannot_be_sealed_leaves_nothing(
    words: list[str], field: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [key if word == "KEY" else word for word in words]
    before = sorted(tmp_path.iterdir())
    assert (
        main(["pack", "code", "-d", "laptop", "-o", str(tmp_path / "x.pack"), *PLAN, *words, "--json"]) == 2
    )
    assert json.loads(capsys.readouterr().out)["field"] == field
    assert sorted(tmp_path.iterdir()) == before


def test_a_key_for_a_plain_pack_is_refused(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "code", "--key", key, "--prompt", "x", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["field"] == "key"
