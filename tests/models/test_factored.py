"""Folders of factored layers: opened, run and packed like any other, and refused where they do not hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, PackWriter
from haversack.formats.safetensors import HubFolder
from haversack.models import read_architecture
from haversack.models._checkpoint import checkpoint
from haversack.models._factored import factored
from haversack.plan._structure import AS_STORED, Structures
from haversack.run import Engine
from haversack.run._encoder import Encoder
from haversack.run._forms import forms_of
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress
from haversack.shrink.structure import factorize, save

IDS = np.random.default_rng(0).integers(0, 90, 24).astype(np.int32)
CONFIGS: dict[str, Any] = {
    "gpt2": transformers.GPT2Config(
        vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1
    ),
    "llama": transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    ),
    "bert": transformers.BertConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64,
    ),
    "roberta": transformers.RobertaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=66, pad_token_id=1,
    ),
}  # fmt: skip
CLASSES: dict[str, Any] = {
    "gpt2": transformers.GPT2LMHeadModel,
    "llama": transformers.LlamaForCausalLM,
    "bert": transformers.BertForMaskedLM,
    "roberta": transformers.RobertaModel,
}


def made(family: str, folder: Path) -> Any:
    """A factored model of `family`, saved; the module."""
    torch.manual_seed(0)
    model = CLASSES[family](CONFIGS[family]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    thin, report = factorize(model, 0.5, "svd")
    assert report.factored
    save(thin, folder)
    return thin.eval()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("residency", ["mapped", "copied", "streamed"])
def test_a_decoder_folder_runs_as_in_pytorch(family: str, residency: str, tmp_path: Path) -> None:
    model = made(family, tmp_path / "thin")
    with torch.inference_mode():
        expected = model(torch.tensor(IDS[None].astype(np.int64))).logits[0].numpy()
    with Engine.open(tmp_path / "thin", residency=residency) as engine:
        found = engine.step(IDS, cache=engine.cache(24), want="all")[0]
        assert "low-rank" in engine.plan["precision"]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_encoder_folder_runs_as_in_pytorch(family: str, tmp_path: Path) -> None:
    model = made(family, tmp_path / "thin")
    with torch.inference_mode():
        out = model(torch.tensor(IDS[None].astype(np.int64)), output_hidden_states=True)
    with Encoder.open(tmp_path / "thin") as encoder:
        found = encoder.encode_ids(IDS[None]).sequence[0]
    expected = out.hidden_states[-1][0].numpy()
    assert np.abs(found - expected).max() < 2e-4 * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["keep:kind=f32", "round-to-nearest:bits=8"])
def test_its_factors_go_into_a_pack(precision: str, tmp_path: Path) -> None:
    made("gpt2", tmp_path / "thin")
    hub = factored(HubFolder.open(tmp_path / "thin"))
    architecture = read_architecture(hub.config)
    source = checkpoint(hub, architecture)
    walk = LanguageWalk(architecture)
    structures = Structures(walk, source)
    assert structures.choice(None) == AS_STORED and structures.choice("none") == "none"
    method: Any = structures.compression(precision, AS_STORED)
    with PackWriter(tmp_path / "a.pack") as writer:
        compress(source, walk, method, writer, texts=None, policy=Policy(), folder=tmp_path)
        writer.finish({"architecture": hub.config, "plan": {"precision": precision}})
    pack = Pack.open(tmp_path / "a.pack")
    held = set(forms_of(source))
    assert len(held) == 12
    assert set(pack.forms) == held if "keep" in precision else {one for one in held if "mlp" in one}
    with Engine.open(tmp_path / "thin") as engine, Engine.open(pack.path) as packed:
        exact, found = (one.step(IDS, cache=one.cache(24), want="all")[0] for one in (engine, packed))
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert error < (1e-5 if "keep" in precision else 0.05)
    assert all((layer.error or 0) < (1e-4 if "keep" in precision else 0.05) for layer in method.layers)


def broken(folder: Path, change: Any) -> Path:
    document = json.loads((folder / "low_rank.json").read_text())
    change(document)
    (folder / "low_rank.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(format=9), "not of format 1"),
        (lambda d: d["layers"]["model.layers.0.mlp.up_proj"].update(rank=3), "rank 3 by low_rank.json"),
        (lambda d: d["layers"]["model.layers.0.mlp.up_proj"].update(rank="x"), "not of format 1"),
        (lambda d: d["layers"].update({"model.layers.9.x": {"rank": 2}}), "its weights are missing"),
        (lambda d: d.pop("layers"), "holds no ranks"),
    ],
)
def test_ranks_that_do_not_hold_are_refused(change: Any, said: str, tmp_path: Path) -> None:
    made("llama", tmp_path / "thin")
    with pytest.raises((DamagedFileError, UserError), match=said):
        Engine.open(broken(tmp_path / "thin", change))


def test_a_folder_without_ranks_is_read_as_it_is(tmp_path: Path) -> None:
    made("llama", tmp_path / "thin")
    shutil.copytree(tmp_path / "thin", tmp_path / "other")
    (tmp_path / "other" / "low_rank.json").unlink()
    with pytest.raises(DamagedFileError, match=r"q_proj.weight is missing"):
        Engine.open(tmp_path / "other")
