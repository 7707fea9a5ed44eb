"""`haversack train` from outside, and packs of what it made: records, refusals in one sentence, a kill."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.cli.said import refused, said

from haversack.cli import main
from haversack.cli._records import OUTPUTS
from haversack.core.pack import Pack
from haversack.formats.safetensors import HubFolder, write_safetensors
from haversack.models import read_architecture
from haversack.models._bundled import bundled_names, model_folder
from haversack.models._family import family_of
from haversack.run import Engine

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")
if "code" not in bundled_names():
    pytest.skip("the bundled model `code` is not installed", allow_module_level=True)

MAIN = "import sys; from haversack.cli import main; sys.exit(main())"
PACK = ("--device", "raspberry-pi-5", "--effort", "0", "--precision", "round-to-nearest:bits=4")
SMALL = ("--steps", "6", "--rows", "2", "--length", "32", "--threads", "1", "--json", "-o")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `t0`, a small Llama with the bundled tokenizer, and `text.py` for it."""
    found = tmp_path_factory.mktemp("train")
    base = found / "t0"
    base.mkdir()
    config = json.loads((model_folder("code") / "config.json").read_text())
    config |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2}
    config |= {"num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256}
    (base / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    tensors = []
    for name, shape in read_architecture(config).tensors().items():
        spread = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
        values = rng.normal(1.0 if len(shape) == 1 else 0.0, spread, shape)
        tensors.append((name, "f16", shape, values.astype(np.float16).tobytes()))
    write_safetensors(base / "model.safetensors", tensors)
    shutil.copy(model_folder("code") / "tokenizer.json", base)
    (found / "text.py").write_text(Path(__file__).read_text(encoding="utf-8") * 2, encoding="utf-8")
    assert (
        main(["train", "draft", str(base), "--data", str(found / "text.py"), *SMALL, str(found / "d")]) == 0
    )
    return found


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_draft_and_fit_print_their_records(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    texts = ("--data", folder / "text.py")
    record = said(capsys, "train", "draft", folder / "t0", *texts, "--name", "cloud", *SMALL, tmp_path / "d")
    msgspec.convert(record, OUTPUTS["train-draft"])
    assert record["family"]["name"] == "cloud" and record["tokens"] == 6 * 64
    assert 0 < record["shared_nbytes"] < record["nbytes"]
    assert record["ram_mib"]["measured"] > 0 and record["ram_mib"]["planned"] > 0
    for form in ("merged", "adapter"):
        line = ("train", "fit", folder / "t0", *texts, "--family", tmp_path / "d", "--as", form, *SMALL)
        record = said(capsys, *line, tmp_path / form)
        msgspec.convert(record, OUTPUTS["train-fit"])
        assert record["blocks"] == [1, 2] and record["family"]["anchor_layers"] == 1


def test_people_read_what_it_did(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = ["train", "fit", str(folder / "t0"), "--data", str(folder / "text.py"), "--family"]
    line += [str(folder / "d"), "--steps", "2", "--rows", "1", "--length", "32", "-o", str(tmp_path / "t1")]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "held-out loss" in out and "the anchor of t0 is as it was" in out and "memory: planned" in out


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (("draft", "t0", "--data", "text.py", "--anchor-layers", "3"), "anchor_layers"),
        (("draft", "t0", "--data", "none.py"), "data"),
        (("draft", "t0"), "data"),
        (("draft", "t0", "--data", "text.py", "--compute", "int4"), "compute"),
        (("fit", "t0", "--data", "text.py", "--parameters", "lora:rank=5"), "rank"),
        (("fit", "t0", "--data", "text.py", "--parameters", "lorra"), "parameters"),
        (("fit", "t0", "--data", "text.py", "--family", "d", "--parameters", "lora:first=0"), "first"),
        (("fit", "t0", "--data", "text.py", "--family", "t0"), "family"),
        (("fit", "t0", "--data", "text.py", "--as", "patch"), "form"),
    ],
)
def test_refusals_are_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, line: Any, field: str
) -> None:
    paths = {"t0", "text.py", "d", "none.py"}
    given = [folder / part if part in paths else part for part in line]
    record = refused(capsys, "train", *given, *SMALL, tmp_path / "goal")
    assert record["field"] == field, record
    assert list(tmp_path.iterdir()) == []


def test_short_texts_are_refused(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "short.py").write_text("def short():\n    return 1\n")
    line = ("train", "fit", folder / "t0", "--data", tmp_path / "short.py", *SMALL, tmp_path / "t1")
    assert "is too short" in refused(capsys, *line)["error"]


def test_a_killed_training_goes_on_to_the_same_bits(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = ["train", "draft", str(folder / "t0"), "--data", str(folder / "text.py"), "--steps", "15"]
    line += ["--rows", "2", "--length", "32", "--threads", "1", "--checkpoint-seconds", "0", "--json", "-o"]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert said(capsys, *line, whole)["steps"] == 15
    process = subprocess.Popen([sys.executable, "-c", MAIN, *line, str(broken)], stdout=subprocess.DEVNULL)
    state = tmp_path / "broken.training" / "state.pt"
    deadline = time.monotonic() + 60
    while not state.is_file() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not broken.exists() and state.is_file()
    assert 1 <= torch.load(state, weights_only=True)["done_steps"] < 15
    said(capsys, *line, broken)
    assert digest(broken) == digest(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "whole"]


def packed(capsys: pytest.CaptureFixture[str], model: Path, goal: Path, *more: Any) -> Pack:
    short = ("--evaluation", model.parent / "text.py") if (model.parent / "text.py").is_file() else ()
    said(capsys, "pack", model, *more, *short, *PACK, "--json", "-o", goal)
    assert not list(goal.parent.glob("*.partial-*"))
    return Pack.open(goal)


def test_packs_carry_the_hash_of_the_float_anchor(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = HubFolder.open(folder / "d")
    family = family_of(source, read_architecture(source.config))
    draft = packed(capsys, folder / "d", tmp_path / "d.pack")
    assert draft.tensors["model.layers.0.mlp.up_proj.weight"].kind == "int4"
    assert draft.record.family == family
    with Engine.open(draft.path) as engine:
        rows, _ = engine.step(np.arange(1, 20, dtype=np.int32), cache=engine.cache(32), want="all")
    assert rows is not None and np.isfinite(rows).all()
    target = packed(capsys, folder / "t0", tmp_path / "t0.pack", "--family", folder / "d")
    assert target.record.family == family
    assert "family" in (target.path / "report.html").read_text()
    assert packed(capsys, folder / "t0", tmp_path / "plain.pack").record.family is None
    again = packed(capsys, folder / "t0", tmp_path / "again.pack", "--family", tmp_path / "d.pack")
    assert again.record.family == family


def test_an_adapter_is_packed_as_the_version_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for form in ("merged", "adapter"):
        line = ("train", "fit", folder / "t0", "--data", folder / "text.py", "--family", folder / "d")
        said(capsys, *line, "--as", form, *SMALL, tmp_path / form)
    shutil.copy(folder / "text.py", tmp_path)
    merged = packed(capsys, tmp_path / "merged", tmp_path / "merged.pack")
    adapter = packed(capsys, folder / "t0", tmp_path / "adapter.pack", "--adapter", tmp_path / "adapter")
    assert merged.record.family == adapter.record.family is not None
    assert adapter.record.provenance["adapter"] == "adapter"
    for name in merged.tensors:
        assert bytes(merged.bytes(name)) == bytes(adapter.bytes(name)), name
    config = tmp_path / "adapter" / "adapter_config.json"
    said_before = json.loads(config.read_text())
    config.write_text(json.dumps({**said_before, "layers_to_transform": None}))
    line = (
        "pack",
        folder / "t0",
        "--adapter",
        tmp_path / "adapter",
        *PACK,
        "--json",
        "-o",
        tmp_path / "b.pack",
    )
    record = refused(capsys, *line)
    assert record["field"] == "layers_to_transform" and not (tmp_path / "b.pack").exists()
    (tmp_path / "adapter" / "family.json").unlink()
    anywhere = packed(capsys, folder / "t0", tmp_path / "c.pack", "--adapter", tmp_path / "adapter")
    assert anywhere.record.family is None, "without a family, an adapter may change what it likes"


def test_packs_of_other_families_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    record = refused(
        capsys, "pack", "code", "--family", folder / "d", *PACK, "--json", "-o", tmp_path / "a.pack"
    )
    assert "has another anchor" in record["error"] or "another family" in record["error"]
    record = refused(
        capsys, "pack", folder / "t0", "--family", folder / "t0", *PACK, "--json", "-o", tmp_path / "a.pack"
    )
    assert "belongs to no family" in record["error"]
    record = refused(
        capsys, "pack", "digits-small", "--family", folder / "d", *PACK, "--json", "-o", tmp_path / "a.pack"
    )
    assert record["field"] == "family"
    record = refused(
        capsys, "pack", folder / "t0", "--adapter", folder / "t0", *PACK, "--json", "-o", tmp_path / "a.pack"
    )
    assert "no adapter_config.json" in record["error"]
    record = refused(capsys, "pack", folder / "t0", "--compare", "--family", folder / "d", "--json")
    assert record["field"] == "family"
    assert list(tmp_path.iterdir()) == []
