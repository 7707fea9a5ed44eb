"""CATS: thresholds of gates, shares of a model's weights, packs whose layers are the definition's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.run.conftest import CONFIG, draw, write_folder

from haversack.core.errors import UserError
from haversack.core.pack import Pack, PackWriter, check_pack
from haversack.formats.safetensors import HubFolder
from haversack.models import read_architecture
from haversack.plan._structure import full_structure
from haversack.run import Engine
from haversack.run._forms import form, pack_findings
from haversack.run._weights import bind
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress, stored_kinds, stored_nbytes
from haversack.shrink.precision.keep import Keep
from haversack.shrink.structure._gated import Gates
from haversack.shrink.structure.cats import Cats, gate_threshold, model_sparsity, share_of

TEXTS = np.random.default_rng(1).integers(1, 280, (4, 64)).astype(np.int32)


def test_shares_of_the_model():
    assert model_sparsity(0.5, 40, 100) == 0.2 and share_of(0.2, 40, 100) == pytest.approx(0.5)
    with pytest.raises(UserError, match=r"beyond what CATS can skip of this model, 0\.400"):
        share_of(0.41, 40, 100)
    with pytest.raises(UserError, match=r"sparsity=1\.0 is no share"):
        Cats(sparsity=1.0)
    assert full_structure("cats") == "cats:sparsity=0.2"


def test_the_threshold_is_the_quantile_of_sizes():
    gated = np.random.default_rng(0).standard_normal((200, 30)).astype(np.float32)
    found = gate_threshold(gated, 0.7)
    assert float((np.abs(gated) <= found).mean()) == pytest.approx(0.7, abs=1e-3)
    assert gate_threshold(gated, 0.0) == 0.0


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Gates]:
    folder = tmp_path_factory.mktemp("cats")
    source = HubFolder.open(write_folder(folder / "model", CONFIG))
    walk = LanguageWalk(read_architecture(source.config))
    gates = Gates(Cats(sparsity=0.3), Keep(kind="f32"), walk)
    with PackWriter(folder / "a.pack") as writer:
        compress(source, walk, gates, writer, texts=TEXTS, policy=Policy(), folder=folder)
        writer.add_file("tokenizer.json", folder / "model" / "tokenizer.json")
        writer.finish({"architecture": source.config, "plan": {"structure": "cats:sparsity=0.3"}})
    stored = sum(entry.nbytes for entry in Pack.open(folder / "a.pack").tensors.values())
    assert stored == stored_nbytes(walk, stored_kinds(walk, gates, Policy()))
    return folder / "a.pack", gates


def test_a_layer_is_the_definition(made):
    path, _ = made
    assert check_pack(path) == [] and pack_findings(path) == []
    source, values = Pack.open(path), draw(CONFIG)
    names = {part: f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    held = bind(source, list(names.values()))
    x = np.random.default_rng(5).standard_normal((9, 64)).astype(np.float32)
    g, u = np.empty((9, 96), np.float32), x @ values[names["up"]].T
    held[names["gate"]].multiply(x, g, activations="f32", add=False, bias=None)
    plain = x @ values[names["gate"]].T
    silu = plain / (1 + np.exp(-plain))
    kept = np.abs(silu) > held[names["gate"]].threshold
    assert np.array_equal(g != 0, kept) and 0.1 < kept.mean() < 0.9
    inner = np.ascontiguousarray(g / (1 + np.exp(-g)) * u)
    out = np.empty((9, 64), np.float32)
    held[names["down"]].multiply(inner, out, activations="f32", add=False, bias=None)
    assert np.allclose(out, (silu * kept * u) @ values[names["down"]].T, atol=1e-4)
    assert held[names["down"]].matrix.counts.tolist() == [9, int(kept.sum())]
    assert np.array_equal(held[names["gate"]].dense(), values[names["gate"]])


def test_a_prompt_has_no_thresholds_and_tokens_do_not_see_each_other(made, tmp_path):
    path, _ = made
    text = TEXTS[0]
    with Engine.open(path) as engine, Engine.open(path.parent / "model") as plain:
        cache = engine.cache(64)
        cache.sparse_from = 40
        whole, _ = engine.step(text[:40], cache=cache, want="all")
        wanted, _ = plain.step(text[:40], cache=plain.cache(64), want="all")
        assert np.abs(whole - wanted).max() < 1e-4
        together, one_by_one = engine.cache(64), engine.cache(64)
        many, _ = engine.step(text[:24], cache=together, want="all")
        single = [engine.step(text[at : at + 1], cache=one_by_one)[0] for at in range(24)]
        assert np.array_equal(many, np.concatenate(single))


@pytest.mark.parametrize(
    ("words", "entry"),
    [
        ("threshold is", {"threshold": -1.0, "activation": "silu"}),
        ("threshold is", {"threshold": "much", "activation": "silu"}),
        ("activation is", {"threshold": 1.0, "activation": "relu"}),
    ],
)
def test_fields_that_cannot_be_are_refused(words, entry):
    with pytest.raises(ValueError, match=words):
        form("gated").parts({"form": "gated", "shape": [8, 8], **entry})


@pytest.mark.parametrize(
    ("words", "entry"),
    [
        ("kind is", {"kind": "int8", "rank": 0}),
        ("group is", {"kind": "int4", "group": 96, "rank": 0}),
        ("rank is", {"kind": "f32", "rank": 9}),
        ("factors is", {"kind": "f32", "rank": 2, "factors": "int4"}),
    ],
)
def test_row_sparse_fields_that_cannot_be_are_refused(words, entry):
    with pytest.raises(ValueError, match=words):
        form("row-sparse").parts({"form": "row-sparse", "shape": [8, 8], **entry})
