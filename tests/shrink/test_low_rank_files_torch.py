"""Factored models on the disk: the same answers in another process, names, sharing, and damaged folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from haversack.core.errors import DamagedFileError, UserError
from haversack.shrink.structure import factorize, load, save

pytestmark = pytest.mark.filterwarnings("ignore:.*stays:UserWarning")


def net() -> nn.Module:
    torch.manual_seed(0)
    shared = nn.Linear(40, 40)
    inside = nn.Sequential(shared, nn.ReLU(), shared, nn.Conv1d(3, 24, 3, padding=1))
    return nn.Sequential(inside, nn.Linear(40, 2)).to(torch.float32)


X = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(1))


@pytest.fixture()
def saved(tmp_path: Path) -> tuple[nn.Module, Path]:
    made, _ = factorize(net(), 8, limit="kernel")
    return made, save(made, tmp_path / "thin")


def test_what_was_saved_comes_back(saved: tuple[nn.Module, Path]) -> None:
    made, folder = saved
    back = load(folder, net())
    assert torch.equal(back(X), made(X))
    assert back[0][0] is back[0][2], "the layer in two places is one layer"
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"0.0.led.0.weight", "0.0.led.1.weight", "0.0.led.1.bias"} <= names
    assert not any(name.startswith("0.2.") for name in names), "shared tensors are written once"
    ranks = json.loads((folder / "low_rank.json").read_text())["layers"]
    assert ranks == {"0.0": {"rank": 8}, "0.2": {"rank": 8, "same_as": "0.0"}}


def test_a_hub_folder_is_built_again_from_its_config_in_another_process(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    model = BertForMaskedLM(BertConfig(**shape, vocab_size=80, max_position_embeddings=32)).eval()
    made, report = factorize(model, 0.5)
    assert len(report.factored) == 13
    folder = save(made, tmp_path / "bert")
    tokens = torch.arange(20)[None]
    expected = made(tokens).logits.detach()
    program = (
        "import sys, torch; from haversack.shrink.structure import load\n"
        "model = load(sys.argv[1]).eval()\n"
        "tied = model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight\n"
        "found = model(torch.arange(20)[None]).logits.detach().numpy()\n"
        "sys.stdout.buffer.write(bytes([tied]) + found.tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, check=True)
    assert done.stdout == b"\1" + expected.numpy().tobytes()


def test_the_wrong_model_is_refused(saved: tuple[nn.Module, Path]) -> None:
    _, folder = saved
    with pytest.raises(UserError, match="no layer of the kind"):
        load(folder, nn.Sequential(nn.ReLU(), nn.Linear(40, 2)))
    wider = nn.Sequential(
        nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48), nn.Conv1d(3, 24, 3)), nn.Linear(48, 2)
    )
    with pytest.raises(UserError, match="do not fit"):
        load(folder, wider)
    with pytest.raises(UserError, match=r"config\.json"):
        load(folder)
    with pytest.raises(UserError, match="no factored model"):
        load(folder.parent, net())


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"rank": 8', '"rank": -8'),
        lambda text: text.replace('"rank": 8', '"rank": "8"'),
        lambda text: text.replace('"format": 1', '"format": 9'),
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: text.replace('"shared": {', '"shared": {"9.weight": "0.0.led.0.weight", '),
    ],
    ids=["cut", "negative", "text", "version", "list", "deep", "alias"],
)
def test_damaged_ranks_are_found(saved: tuple[nn.Module, Path], change: Any) -> None:
    _, folder = saved
    path = folder / "low_rank.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(DamagedFileError):
        load(folder, net())


def test_damaged_weights_are_found(saved: tuple[nn.Module, Path]) -> None:
    _, folder = saved
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DamagedFileError):
        load(folder, net())
