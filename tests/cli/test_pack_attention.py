"""`haversack pack --attention`: a pack with its boundary predictor, which its runs use; what is refused."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.run.conftest import write_folder
from tests.run.encoders import write_encoder

from haversack.cli import main
from haversack.cli._records import OUTPUTS
from haversack.core.pack import Pack
from haversack.models._bundled import bundled_names, model_folder

pytest.importorskip("torch")
if "code" not in bundled_names():
    pytest.skip("the bundled model `code` is not installed", allow_module_level=True)

DHSA = "dhsa:budget=96,query_block=16,local=16,sinks=16,tail=16,threshold=-9.0"
QUICK = ("--effort", "0", "--calibration-tokens", "2048", "--cache-type", "f32", "--residency", "mapped")
TEXT = Path(argparse.__file__).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama of the bundled model's vocabulary, its weights drawn; two texts beside it."""
    config = json.loads((model_folder("code") / "config.json").read_text())
    config |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    folder = write_folder(tmp_path_factory.mktemp("hub") / "long", config, kind="f16")
    shutil.copy(model_folder("code") / "tokenizer.json", folder)
    (folder.parent / "evaluation.txt").write_text(TEXT[:6000], encoding="utf-8")
    (folder.parent / "calibration.txt").write_text(TEXT[6000:22000], encoding="utf-8")
    return folder


def said(capsys: pytest.CaptureFixture[str], command: str, *arguments: Any, code: int = 0) -> dict[str, Any]:
    assert main([command, *map(str, arguments), "--json"]) == code
    out = capsys.readouterr()
    if code == 0:
        msgspec.json.decode(out.out.encode(), type=OUTPUTS[command])
    assert "Traceback" not in out.out + out.err
    record: dict[str, Any] = json.loads(out.out)
    return record


def packed(
    capsys: pytest.CaptureFixture[str], folder: Path, goal: Path, attention: str, code: int = 0
) -> dict[str, Any]:
    line: list[Any] = [folder, "-o", goal, "--device", "raspberry-pi-5", "--attention", attention, *QUICK]
    for name in ("evaluation", "calibration"):
        line += [f"--{name}", folder.parent / f"{name}.txt"]
    return said(capsys, "pack", *line, "--precision", "round-to-nearest:bits=8", code=code)


def test_a_pack_brings_what_its_runs_need(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goal = tmp_path / "long.pack"
    packed(capsys, folder, goal, DHSA)
    pack = Pack.open(goal)
    assert pack.record.plan["attention"] == DHSA and not pack.check()
    page = (goal / "report.html").read_text()
    assert "boundary predictor" in page and "F1" in page
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(TEXT[3000:4400], encoding="utf-8")
    record = said(capsys, "run", goal, prompt, "--max-tokens", "4")
    assert record["plan"]["attention"] == DHSA
    assert record["attention"]["kept"] < 0.8 and record["attention"]["borders"] > 5
    assert record["prompt_tokens"] == record["attention"]["tokens"]
    dense = said(capsys, "run", goal, prompt, "--max-tokens", "4", "--attention", "dense")
    assert "attention" not in dense
    short = said(capsys, "run", goal, "--prompt", "import os", "--max-tokens", "4")
    assert "fit in the budget" in short["attention"]["note"]


def test_the_predictor_of_another_pack_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed(capsys, folder, tmp_path / "one.pack", DHSA)
    file = tmp_path / "one.pack" / "boundaries.safetensors"
    other = write_folder(
        tmp_path / "hub" / "other", json.loads((folder / "config.json").read_text()), seed=9, kind="f16"
    )
    shutil.copy(folder / "tokenizer.json", other)
    for name in ("evaluation", "calibration"):
        shutil.copy(folder.parent / f"{name}.txt", other.parent)
    error = packed(capsys, other, tmp_path / "two.pack", f"{DHSA},predictor={file}", code=2)
    assert error["field"] == "predictor" and "another model's keys" in error["error"]
    assert not (tmp_path / "two.pack").exists()


def test_forms_without_a_predictor_are_only_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed(capsys, folder, tmp_path / "top.pack", "dhsa:mode=dhsa_topk")
    pack = Pack.open(tmp_path / "top.pack")
    assert pack.record.plan["attention"] == "dhsa:mode=dhsa_topk"
    assert "boundaries.safetensors" not in pack.record.files


def test_an_encoder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_encoder(tmp_path / "encoder", "bert")
    line = (folder, "-o", tmp_path / "e.pack", "--device", "raspberry-pi-5", "--attention", "dhsa")
    error = said(capsys, "pack", *line, code=2)
    assert error["field"] == "attention" and "decoder language models" in error["error"]
