"""ReGLU: what a token leaves out is not read, and what it computes is what reading all would give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.conftest import CONFIG, RECORD, MemorySource, draw, write_folder

from haversack.core.errors import UserError
from haversack.core.pack import Pack, PackWriter, check_pack
from haversack.formats.safetensors import HubFolder
from haversack.kernels import Matrix, unpack
from haversack.models import read_architecture
from haversack.plan._structure import Structures, full_structure, takes
from haversack.run import Engine
from haversack.run._forms import form, pack_findings
from haversack.run._weights import bind
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress, stored_kinds, stored_nbytes
from haversack.shrink.structure.reglu import regated, relu_layers, weights_skipped, zero_share

TEXTS = np.random.default_rng(1).integers(1, 280, (4, 64)).astype(np.int32)
TEXT = np.random.default_rng(7).integers(3, 280, 40).astype(np.int32)
SMALLTHINKER = RECORD.CASES["smallthinker"][0]


def packed(folder: Path, config: dict[str, Any], precision: str, structure: str) -> Path:
    source = HubFolder.open(write_folder(folder / "model", config))
    walk = LanguageWalk(read_architecture(config))
    method = Structures(walk, source).compression(precision, structure)
    goal = folder / f"{precision.partition(':')[0]}-{structure}.pack"
    with PackWriter(goal) as writer:
        compress(source, walk, method, writer, texts=TEXTS, policy=Policy(), folder=folder)
        writer.add_file("tokenizer.json", folder / "model" / "tokenizer.json")
        writer.finish({"architecture": config, "plan": {"precision": precision, "structure": structure}})
    stored = sum(entry.nbytes for entry in Pack.open(goal).tensors.values())
    assert stored == stored_nbytes(walk, stored_kinds(walk, method, Policy()))
    assert check_pack(goal) == [] and pack_findings(goal) == []
    return goal


def logits_of(source: Any, sizes: int = 1) -> np.ndarray:
    with Engine.open(source) as engine:
        cache = engine.cache(48)
        rows = [engine.step(TEXT[at : at + sizes], cache=cache, want="all")[0] for at in range(0, 40, sizes)]
    return np.concatenate(rows)


def test_definitions():
    gate, up = np.array([[1.0, -2.0, 0.0]], np.float32), np.array([[3.0, 5.0, 7.0]], np.float32)
    assert regated(gate, up).tolist() == [[3.0, 0.0, 0.0]]
    assert zero_share(regated(gate, up)) == pytest.approx(2 / 3)
    layers = relu_layers(read_architecture(SMALLTHINKER).blocks)
    assert len(layers) == 4 * 6
    shapes = {one.weight: (one.outputs, one.inputs) for one in (layers[0].gate, layers[0].up, layers[0].down)}
    assert weights_skipped(shapes, layers[:1], 0.6) == pytest.approx(0.4)
    assert full_structure("reglu") == "reglu" and takes("reglu", "keep:kind=f16")
    assert not takes("reglu", "gptq")


def test_the_same_numbers_as_reading_all(tmp_path: Path) -> None:
    """In f32 the sparse layer has the bits of one that reads every neuron, and logits equal the folder's."""
    pack = packed(tmp_path, SMALLTHINKER, "keep:kind=f32", "reglu")
    sparse = logits_of(pack)
    plain = logits_of(tmp_path / "model")
    assert np.abs(sparse - plain).max() <= 1e-5 * np.abs(plain).max()
    assert np.array_equal(logits_of(pack, 8), sparse) and np.array_equal(logits_of(pack, 40), sparse)
    with Engine.open(pack) as engine:
        everything = engine.cache(48)
        everything.sparse_from = 40  # every token reads all columns of down
        whole = [engine.step(TEXT[at : at + 1], cache=everything)[0] for at in range(40)]
    assert np.array_equal(np.concatenate(whole), sparse)


@pytest.mark.parametrize("residency", ["mapped", "streamed"])
def test_four_bits(residency: str, tmp_path: Path) -> None:
    config = {**SMALLTHINKER, "hidden_size": 128, "moe_ffn_hidden_size": 192, "head_dim": 32}
    pack = packed(tmp_path, config, "round-to-nearest:bits=4,group=64", "reglu")
    sparse = logits_of(pack)
    stored = Pack.open(pack)
    held = {}
    for name, matrix in bind(stored, read_architecture(config).tensors()).items():
        if isinstance(matrix, np.ndarray):
            held[name] = matrix
        else:
            held[name] = unpack(matrix) if isinstance(matrix, Matrix) else matrix.dense()
    plain = logits_of(MemorySource(config, held))
    assert np.abs(sparse - plain).max() <= 1e-4 * np.abs(plain).max(), "what the stored numbers stand for"
    with Engine.open(pack, residency=residency) as engine:
        cache = engine.cache(48)
        found = np.concatenate(
            [engine.step(TEXT[at : at + 5], cache=cache, want="all")[0] for at in range(0, 40, 5)]
        )
        assert np.array_equal(found, sparse)
        stats = engine.tally.stats()
    assert 0.3 < stats["layers"][0]["active"] < 0.7, "half of what a ReLU is given is below zero"
    assert stats["drift"] is None


def test_a_dense_model_with_relu(tmp_path: Path) -> None:
    config = {**CONFIG, "hidden_act": "relu"}
    pack = packed(tmp_path, config, "keep:kind=f16", "reglu")
    forms = {entry["form"] for entry in Pack.open(pack).forms.values()}
    assert forms == {"neurons", "row-sparse"}
    plain = logits_of(tmp_path / "model")
    assert np.abs(logits_of(pack) - plain).max() <= 2e-2 * np.abs(plain).max()


def test_a_model_without_relu_is_refused() -> None:
    walk = LanguageWalk(read_architecture(CONFIG))
    with pytest.raises(UserError, match="no layers gated by one") as refused:
        Structures(walk, HubLike()).compression("keep:kind=f16", "reglu")
    assert refused.value.nearest == "r-sparse"
    with pytest.raises(UserError, match="no layout by columns, which reglu needs"):
        Structures(LanguageWalk(read_architecture(SMALLTHINKER)), HubLike()).compression("gptq", "reglu")


class HubLike:
    """A source without forms."""


def test_entries_that_cannot_be():
    neurons = form("neurons")
    good = {"form": "neurons", "shape": [64, 96], "kind": "int4", "group": 64}
    assert set(neurons.parts(good)) == {"rows"}
    for wrong in ({"kind": "int8"}, {"kind": None}, {"group": 32}, {"group": 96}, {"group": True}):
        with pytest.raises(ValueError):
            neurons.parts({**good, **wrong})


def test_the_form_stands_for_its_matrix(tmp_path: Path) -> None:
    pack = Pack.open(packed(tmp_path, SMALLTHINKER, "keep:kind=f32", "reglu"))
    values, name = draw(SMALLTHINKER), "model.layers.1.block_sparse_moe.experts.2.up.weight"
    held = bind(pack, [name])[name]
    assert np.array_equal(held.dense(), values[name])
    x = np.random.default_rng(3).standard_normal((3, 64)).astype(np.float32)
    out = np.ones((3, 64), np.float32)
    held.multiply(x, out, activations="f32", add=True, bias=None)
    assert np.allclose(out, 1 + x @ values[name].T, atol=1e-4)
