"""`haversack pack` and `haversack run` on folders whose tensors are fused, turned over, or shortly named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.cli.said import said
from tests.run.conftest import RECORD

from haversack.core.pack import Pack
from haversack.formats.safetensors import write_safetensors
from haversack.models import read_architecture
from haversack.models._bundled import bundled_names, model_folder

if "code" not in bundled_names():
    pytest.skip("the bundled model `code` is not installed", allow_module_level=True)

BARE = {"gpt2": "transformer.", "opt-350m": "model."}


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A case of the recordings as a hub folder with the bundled tokenizer, in f16."""
    name = request.param
    path = tmp_path / name
    path.mkdir()
    shutil.copy(model_folder("code") / "tokenizer.json", path)
    vocabulary = json.loads((model_folder("code") / "config.json").read_text())["vocab_size"]
    length = "n_positions" if name == "gpt2" else "max_position_embeddings"
    config = {**RECORD.CASES[name][0], "vocab_size": vocabulary, length: 256}
    (path / "config.json").write_text(json.dumps(config))
    drawn = RECORD.draw_weights(read_architecture(config).checkpoint_tensors(), 3, 0.1)
    tensors = [
        (key.removeprefix(BARE.get(name, "")), "f16", values.shape, values.astype(np.float16).tobytes())
        for key, values in drawn.items()
    ]
    write_safetensors(path / "model.safetensors", tensors)
    return path


@pytest.mark.parametrize("folder", ["gpt2", "opt-350m"], indirect=True)
def test_pack_and_run(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    goal = tmp_path / "small.pack"
    options = ("--effort", 1, "--calibration-tokens", 2048, "--precision", "gptq:bits=8")
    packed = said(capsys, "pack", folder, "--device", "laptop", "-o", goal, *options)
    assert packed["plan"]["precision"].startswith("gptq:bits=8")
    config = json.loads((folder / "config.json").read_text())
    pack = Pack.open(goal)
    assert pack.record.architecture == config
    assert set(pack.tensors) == set(read_architecture(config).tensors())
    answers = set()
    for way in ("mapped", "copied", "streamed"):
        asked = ("--prompt", "def f(x):", "--max-tokens", 6, "--ignore-end", "--residency", way)
        for source in (goal, folder):
            answer = said(capsys, "run", source, *asked)
            assert answer["tokens"] == 6 and answer["ram_mib"]["planned"] > 40
            answers.add((source, answer["text"]))
    assert len(answers) == 2  # one of the pack, one of the folder, wherever the weights are
