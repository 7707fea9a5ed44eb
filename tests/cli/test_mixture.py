"""`haversack pack` and `haversack run` on mixtures of experts in exactly the hub's format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.cli.said import said
from tests.run.conftest import RECORD

from haversack.cli import main
from haversack.core.pack import Pack
from haversack.formats.safetensors import write_safetensors
from haversack.models import read_architecture
from haversack.models._bundled import bundled_names, model_folder

if "code" not in bundled_names():
    pytest.skip("the bundled model `code` is not installed", allow_module_level=True)


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A case of the recordings as a hub folder of two files with the bundled tokenizer, in bf16."""
    name = request.param
    path = tmp_path / name
    path.mkdir()
    shutil.copy(model_folder("code") / "tokenizer.json", path)
    vocabulary = json.loads((model_folder("code") / "config.json").read_text())["vocab_size"]
    config = {**RECORD.CASES[name][0], "vocab_size": vocabulary, "max_position_embeddings": 256}
    (path / "config.json").write_text(json.dumps(config))
    drawn = RECORD.draw_weights(read_architecture(config).checkpoint_tensors(), 3, 0.1)
    tensors = [
        (key, "bf16", values.shape, (values.view("<u4") >> 16).astype("<u2").tobytes())
        for key, values in drawn.items()
    ]
    placed = {}
    for part in range(2):
        file = f"model-{part + 1:05d}-of-00002.safetensors"
        write_safetensors(path / file, tensors[part::2])
        placed |= {tensor[0]: file for tensor in tensors[part::2]}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return path


@pytest.mark.parametrize(
    ("folder", "precision"),
    [("mixtral", "round-to-nearest:bits=8"), ("qwen2_moe", "gptq:bits=4,group=32")],
    indirect=["folder"],
)
def test_pack_and_run(
    folder: Path, precision: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    goal = tmp_path / "small.pack"
    options = ("--effort", 1, "--calibration-tokens", 2048, "--precision", precision)
    packed = said(capsys, "pack", folder, "--device", "laptop", "-o", goal, *options)
    assert packed["plan"]["precision"].startswith(precision)
    config = json.loads((folder / "config.json").read_text())
    pack = Pack.open(goal)
    assert pack.record.architecture == config
    assert set(pack.tensors) == set(read_architecture(config).tensors())
    report = (goal / "report.html").read_text()
    assert ("experts without calibration tokens" in report) == precision.startswith("gptq")
    answers = set()
    for way in ("mapped", "copied", "streamed"):
        asked = ("--prompt", "def f(x):", "--max-tokens", 6, "--ignore-end", "--residency", way)
        for source in (goal, folder):
            answer = said(capsys, "run", source, *asked)
            assert answer["tokens"] == 6 and answer["ram_mib"]["planned"] > 40
            answers.add((source, answer["text"]))
    assert len(answers) == 2  # one of the pack, one of the folder, wherever the weights are


@pytest.mark.parametrize("folder", ["smallthinker"], indirect=True)
def test_nested_bits_are_packed_streamed_and_exported(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    goal = tmp_path / "small.pack"
    options = ("--effort", 1, "--calibration-tokens", 2048, "--precision", "d2moe:group=32")
    packed = said(capsys, "pack", folder, "--device", "laptop", "-o", goal, *options)
    assert packed["plan"]["precision"].startswith("d2moe")
    answers = set()
    for way in ("mapped", "streamed:d2moe", "streamed:d2moe:buffer_kib=0,schedule=id-order"):
        asked = ("--prompt", "def f(x):", "--max-tokens", 6, "--ignore-end", "--residency", way)
        answer = said(capsys, "run", goal, *asked)
        answers.add(answer["text"])
        if way != "mapped":
            told = answer["experts"]
            assert told["mean_bits"] == 4 and sum(told["plane_nbytes"]) > 0
            assert told["schedule"] in way or told["schedule"] == "hebf"
    assert len(answers) == 1
    said(capsys, "export", goal, "--to", "safetensors", "-o", tmp_path / "out")
    again = said(capsys, "run", tmp_path / "out", "--prompt", "def f(x):", "--max-tokens", 6, "--ignore-end")
    assert again["tokens"] == 6


@pytest.mark.parametrize("folder", ["smallthinker"], indirect=True)
def test_reglu_says_what_it_skipped(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    goal = tmp_path / "small.pack"
    options = ("--effort", 1, "--calibration-tokens", 2048, "--precision", "keep:kind=f16")
    options += ("--structure", "reglu")
    packed = said(capsys, "pack", folder, "--device", "laptop", "-o", goal, *options)
    assert packed["plan"]["structure"] == "reglu"
    answer = said(capsys, "run", goal, "--prompt", "def f(x):", "--max-tokens", 8, "--ignore-end")
    assert 0.15 < answer["sparsity"]["sparsity"] < 0.6


def wrong(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("folder", "changes", "field", "words"),
    [
        ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok", "is more than num_local_experts=4"),
        ("mixtral", {"num_local_experts": 0}, "num_local_experts", "outside 1"),
        ("mixtral", {"num_local_experts": 5}, "gate.weight", r"\[4, 64\]"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv", "a bound on queries and keys"),
        ("qwen2_moe", {"mlp_only_layers": [4]}, "mlp_only_layers", "blocks from 0 to 3"),
        ("qwen2_moe", {"mlp_only_layers": 1}, "mlp_only_layers", "blocks from 0 to 3"),
        ("qwen2_moe", {"decoder_sparse_step": 2}, "mlp.gate_proj.weight", "is missing"),
        ("smallthinker", {"rope_layout": [1, 0]}, "rope_layout", "one for each block"),
        ("smallthinker", {"rope_layout": [1] * 5}, "rope_layout", "one for each block"),
        ("smallthinker", {"moe_layer_layout": [1, 1, 0, 1]}, "moe_layer_layout", "dense blocks"),
        ("smallthinker", {"moe_enable_early_router": 0}, "moe_enable_early_router", "neither true nor"),
        ("smallthinker", {"moe_enable_secondary_experts": True}, "secondary", "not supported"),
        ("smallthinker", {"moe_num_active_primary_experts": 7}, "moe_num_active", "is more than"),
    ],
    indirect=["folder"],
)
def test_what_cannot_be_is_refused_by_name(
    folder: Path, changes: dict[str, Any], field: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    wrong(folder, **changes)
    assert main(["run", str(folder), "--prompt", "x", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert field in error["field"] and re.search(words, error["error"]), error


@pytest.mark.parametrize("folder", ["mixtral"], indirect=True)
def test_an_expert_without_a_matrix_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from haversack.formats.safetensors import HubFolder

    source = HubFolder.open(folder)
    missing = "model.layers.2.block_sparse_moe.experts.1.w2.weight"
    kept = [
        (entry.name, entry.kind, entry.shape, bytes(source.bytes(entry.name)))
        for entry in source.tensors.values()
        if entry.name != missing
    ]
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    write_safetensors(folder / "model.safetensors", kept)
    assert main(["run", str(folder), "--prompt", "x", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert error["field"] == missing and f"the tensor {missing} is missing" in error["error"]


@pytest.mark.parametrize("folder", ["mixtral"], indirect=True)
def test_an_export_that_has_no_words_for_experts_refuses(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["export", str(folder), "--to", "gguf", "-o", str(tmp_path / "out"), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert "mixtral" in error["error"]


@pytest.mark.parametrize("folder", ["olmoe"], indirect=True)
def test_the_way_out_to_safetensors_keeps_every_expert(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from haversack.formats.safetensors import HubFolder

    goal = tmp_path / "small.pack"
    options = ("--effort", 1, "--precision", "keep:kind=f32")
    said(capsys, "pack", folder, "--device", "laptop", "-o", goal, *options)
    said(capsys, "export", goal, "--to", "safetensors", "-o", tmp_path / "out")
    one, two = HubFolder.open(folder), HubFolder.open(tmp_path / "out")
    assert set(one.tensors) == set(two.tensors)
    for name in one.tensors:
        halves = np.frombuffer(one.bytes(name), "<u2").astype("<u4") << 16
        assert np.array_equal(np.frombuffer(two.bytes(name), "<f4"), halves.view("<f4")), name
