"""`haversack pack --structure` from outside: packs that run, ranks and errors listed, bad ranks refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.run.conftest import write_folder
from tests.run.encoders import WORDS, write_encoder

from haversack.cli import main
from haversack.cli._records import OUTPUTS
from haversack.core.pack import Pack
from haversack.models._bundled import bundled_names, model_folder

BOARD = ("--device", "raspberry-pi-zero-2w")

if "code" not in bundled_names():
    pytest.skip("the bundled model `code` is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama of the bundled model's vocabulary, its weights drawn."""
    config = json.loads((model_folder("code") / "config.json").read_text())
    config |= {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256}
    folder = write_folder(tmp_path_factory.mktemp("hub") / "wide", config, kind="f16")
    shutil.copy(model_folder("code") / "tokenizer.json", folder)
    return folder


def packed(capsys: pytest.CaptureFixture[str], *arguments: Any, code: int = 0) -> dict[str, Any]:
    if "--evaluation" not in arguments:
        text = source_text()
        parts = {"evaluation": text[:6000], "calibration": text[6000:20000]}
        for name, part in parts.items():
            path = Path(arguments[0]).parent / f"{name}.txt"
            path.write_text(part, encoding="utf-8")
            arguments = (*arguments, f"--{name}", path)
    assert main(["pack", *map(str, arguments), *BOARD, "--json"]) == code
    said = capsys.readouterr()
    record: dict[str, Any] = json.loads(said.out)
    if code == 0:
        msgspec.json.decode(said.out.encode(), type=OUTPUTS["pack"])
    else:
        assert "Traceback" not in said.out + said.err and "\n" not in record["error"]
    return record


def source_text() -> str:
    """Python source, like what the tokenizer was made of."""
    import argparse

    return Path(argparse.__file__).read_text(encoding="utf-8")


QUICK = ("--effort", "0", "--calibration-tokens", "2048", "--cache-type", "f32", "--residency", "mapped")


def test_a_language_model_in_factors(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goal = tmp_path / "thin.pack"
    line = ("--structure", "low-rank:rank=0.5,solver=whitened", "--precision", "round-to-nearest:bits=8")
    record = packed(capsys, folder, "-o", goal, *QUICK, *line)
    assert record["plan"]["structure"] == "low-rank:rank=0.5,solver=whitened"
    chosen = next(one for one in record["candidates"] if one["source"] == "measured")
    pack = Pack.open(goal)
    assert {layer["name"] for layer in record["layers"] if layer["rank"]} == set(pack.forms)
    assert chosen["storage_mib"] == pytest.approx(pack.nbytes / 2**20, rel=0.05)
    weights = (goal / "weights.safetensors").stat().st_size
    assert chosen["storage_mib"] * 2**20 > weights
    page = (goal / "report.html").read_text()
    assert "The matrices" in page and record["layers"][0]["name"] in page
    assert main(["check", str(goal)]) == 0
    capsys.readouterr()
    line = ("--max-tokens", "4", "--residency", "streamed", "--json")
    assert main(["run", str(goal), "--prompt", "the", *line]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["residency"] == "streamed"


def test_an_encoder_in_factors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_encoder(tmp_path / "bert", "bert")
    rng = np.random.default_rng(5)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(rng.choice(WORDS, 12)) for _ in range(160)))
    options = ("--evaluation", text, "--calibration", text, "--calibration-tokens", "2000", "--effort", "0")
    line = ("--structure", "low-rank:rank=0.75,solver=whitened", "--precision", "keep:kind=f16")
    goal = tmp_path / "thin.pack"
    record = packed(capsys, folder, "-o", goal, *options, *line)
    assert any(name.endswith("pooler.dense.weight") for name in Pack.open(goal).forms)
    assert all(0 < layer["output_error"] < 1 for layer in record["layers"] if layer["rank"])
    assert main(["run", str(goal), "the old cat", "--json"]) == 0


def test_low_rank_is_offered_where_nothing_dense_fits(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goal = tmp_path / "small.pack"
    line = ("--precision", "round-to-nearest:bits=4,group=32", "--output-matrix", "as-blocks")
    refused = packed(
        capsys, folder, "-o", goal, *QUICK, *line, "--structure", "none", "--storage-mib", "0.1", code=2
    )
    assert refused["field"] == "storage_mib"
    limit = refused["nearest"] - 0.12
    none = packed(
        capsys, folder, "-o", goal, *QUICK, *line, "--structure", "none", "--storage-mib", limit, code=2
    )
    assert none["field"] == "storage_mib"
    record = packed(capsys, folder, "-o", goal, *QUICK, *line, "--storage-mib", limit)
    assert record["plan"]["structure"].startswith("low-rank:rank=")
    assert Pack.open(goal).nbytes / 2**20 <= limit


@pytest.mark.parametrize(
    ("structure", "said"),
    [
        ("low-rank:rank=0", "rank=0 is no rank"),
        ("low-rank:rank=-1", "rank=-1 is no rank"),
        ("low-rank:rank=nan", "rank=nan is no rank"),
        ("low-rank:rank=5000", "saves nothing in any of the 14 matrices"),
        ("low-rank:solver=random", "random factors would know nothing"),
        ("low-rank:solver=nmf", "nmf needs weights that are not negative"),
        ("low-rnak", "low-rank"),
    ],
)
def test_a_bad_structure_is_refused(
    structure: str, said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goal = tmp_path / "bad.pack"
    line = ("--precision", "keep:kind=f16", "--structure", structure)
    assert said in packed(capsys, folder, "-o", goal, *QUICK, *line, code=2)["error"]
    assert not list(tmp_path.iterdir())
