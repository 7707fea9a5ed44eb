"""Exports of mixtures of experts compute what the engine computes, packed experts included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.run.conftest import tokenizer_json
from tests.run.experts import write_expert_pack
from tests.run.test_export import Session, close, ours

from haversack.core.errors import UserError
from haversack.formats.safetensors import HubFolder
from haversack.run._source import open_model
from haversack.run.export import export

TEXT = np.random.default_rng(3).integers(3, 280, 24).astype(np.int32)


@pytest.mark.parametrize("name", ["smallthinker", "smallthinker-softmax"])
def test_safetensors_are_read_by_the_recorder(
    name: str, record: ModuleType, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """transformers has no SmallThinker; its specification in numpy reads the export."""
    config, length = record.CASES[name]
    folder = make_folder(tmp_path / "model", config, record.seed_of(name), "f32")
    prompt = record.draw_prompt(name, length)
    export(open_model(folder), "safetensors", tmp_path / "out")
    source = HubFolder.open(tmp_path / "out")
    weights = {
        tensor: np.frombuffer(source.bytes(tensor), "<f4").reshape(entry.shape)
        for tensor, entry in source.tensors.items()
    }
    said = record.reference(source.config, weights, prompt, 1)[0]
    assert close(said, ours(folder, prompt, 1)[0])


@pytest.mark.parametrize("weights", ["stored", "f32"])
def test_experts_of_every_width_compute_in_onnx(weights: str, tmp_path: Path) -> None:
    """Experts of 2 to 32 bits out of their store, several tokens at once and one by one."""
    pack = write_expert_pack(tmp_path / "a.pack", tokenizer=tokenizer_json())
    export(open_model(pack), "onnx", tmp_path / "out", weights=weights, activations="f32")
    logits, tokens = Session(tmp_path / "out").answer(TEXT, 6)
    expected, same = ours(pack, TEXT, 6)
    assert close(logits, expected) and tokens == same
    graph = (tmp_path / "out" / "model.onnx").read_bytes()
    assert (b"com.microsoft" in graph) == (weights == "stored")


def test_experts_become_dense_numbers(tmp_path: Path) -> None:
    pack = write_expert_pack(tmp_path / "a.pack", tokenizer=tokenizer_json())
    export(open_model(pack), "safetensors", tmp_path / "out")
    assert close(ours(open_model(tmp_path / "out"), TEXT, 1)[0], ours(pack, TEXT, 1)[0])


def test_an_expert_computes_only_the_tokens_that_chose_it(tmp_path: Path) -> None:
    """As many rows enter the first matrix of a block's experts as tokens take experts."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pack = write_expert_pack(tmp_path / "a.pack", tokenizer=tokenizer_json())
    export(open_model(pack), "onnx", tmp_path / "out", weights="f32")
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    up = [node for node in model.graph.node if any(".0.mlp.experts." in one for one in node.input)]
    read = [node.input[0] for node in up if any("up_proj" in one for one in node.input)]
    assert len(read) == 6
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in read)
    (tmp_path / "out" / "seen.onnx").write_bytes(model.SerializeToString())
    session = runtime.InferenceSession(
        str(tmp_path / "out" / "seen.onnx"), providers=["CPUExecutionProvider"]
    )
    given: dict[str, Any] = {
        one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32)
        for one in session.get_inputs()
        if one.name.startswith("past")
    }
    count = len(TEXT)
    given |= {"input_ids": TEXT[None].astype(np.int64), "attention_mask": np.ones((1, count), np.int64)}
    rows = session.run(read, {**given, "position_ids": np.arange(count)[None]})
    assert sum(len(one) for one in rows) == 2 * count and max(len(one) for one in rows) < count


def test_a_score_without_a_form_is_named(tmp_path: Path) -> None:
    from dataclasses import replace

    pytest.importorskip("onnx")
    model = open_model(write_expert_pack(tmp_path / "a.pack", tokenizer=tokenizer_json()))
    first = model.architecture.blocks[0]
    branches = [
        replace(one, layer=replace(one.layer, scoring="entmax")) if one.layer.kind == "mixture" else one
        for one in first.branches
    ]
    block = replace(first, branches=tuple(branches))
    blocks = (block, *model.architecture.blocks[1:])
    other = replace(model, architecture=replace(model.architecture, blocks=blocks))
    with pytest.raises(UserError, match="the scores 'entmax' of a router have no form"):
        export(other, "onnx", tmp_path / "out")
