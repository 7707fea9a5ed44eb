"""Checkpoints that do not hold: one sentence each, naming what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.conftest import draw

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.safetensors import write_safetensors
from haversack.run import Engine


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def rewrite(folder: Path, config: dict[str, Any], change: Any) -> None:
    weights = draw(config)
    change(weights)
    tensors = [(n, "f32", v.shape, v.tobytes()) for n, v in weights.items()]
    write_safetensors(folder / "model.safetensors", tensors)


def test_a_missing_tensor_is_named(copy: Path, tiny_config: Any) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(copy, tiny_config, lambda weights: weights.pop(name))
    with pytest.raises(DamagedFileError, match=name.replace(".", r"\.")):
        Engine.open(copy)


def test_a_tensor_of_another_shape_is_named_with_both(copy: Path, tiny_config: Any) -> None:
    name = "model.layers.0.self_attn.k_proj.weight"
    rewrite(copy, tiny_config, lambda weights: weights.update({name: np.zeros((64, 64), np.float32)}))
    with pytest.raises(UserError, match=r"\[64, 64\].*\[32, 64\]") as refused:
        Engine.open(copy)
    assert refused.value.field == name


def test_a_vector_where_a_matrix_belongs(copy: Path, tiny_config: Any) -> None:
    rewrite(copy, tiny_config, lambda w: w.update({"model.norm.weight": np.ones((64, 1), np.float32)}))
    with pytest.raises(UserError, match=r"model\.norm\.weight"):
        Engine.open(copy)


def test_a_bias_that_the_config_denies(copy: Path, tiny_config: Any) -> None:
    name = "model.layers.2.self_attn.q_proj.bias"
    rewrite(copy, tiny_config, lambda weights: weights.update({name: np.ones(64, np.float32)}))
    with pytest.raises(UserError, match="no such bias"):
        Engine.open(copy)


def test_an_untied_head_must_be_there(copy: Path, tiny_config: Any) -> None:
    rewrite(copy, tiny_config, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(DamagedFileError, match=r"lm_head\.weight is missing"):
        Engine.open(copy)
    config = {**tiny_config, "tie_word_embeddings": True}
    (copy / "config.json").write_text(json.dumps(config))
    with Engine.open(copy) as engine:
        assert engine.architecture.tied


def test_a_truncated_file(copy: Path) -> None:
    size = (copy / "model.safetensors").stat().st_size
    for left in (0, 7, 100, size // 2, size - 1):
        os.truncate(copy / "model.safetensors", left)
        with pytest.raises(UserError):
            Engine.open(copy)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"hidden_size": 64.5}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"vocab_size": []}, "vocab_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"hidden_act": "sillu"}, "hidden_act"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"eos_token_id": 288}, "eos_token_id"),
        ({"bos_token_id": "a"}, "bos_token_id"),
        ({"rope_scaling": 3}, "rope_scaling"),
        ({"rope_scaling": {"type": "lineer", "factor": 2}}, "type"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "beta_fast": "x"}}, "beta_fast"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": "lama"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"model_type": 7}, "model_type"),
    ],
)
def test_a_config_that_cannot_be(changes: dict[str, Any], field: str, copy: Path, tiny_config: Any) -> None:
    (copy / "config.json").write_text(json.dumps({**tiny_config, **changes}))
    with pytest.raises(UserError) as refused:
        Engine.open(copy)
    assert refused.value.field == field
    assert "\n" not in str(refused.value)


def test_an_unknown_architecture_names_the_nearest(copy: Path, tiny_config: Any) -> None:
    for given, nearest in (("lama", "llama"), ("qwen2_5", "qwen2"), ("stablelm2", "stablelm")):
        (copy / "config.json").write_text(json.dumps({**tiny_config, "model_type": given}))
        with pytest.raises(UserError) as refused:
            Engine.open(copy)
        assert refused.value.nearest == nearest


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"version":"1.0"}', b"{}" * 9])
def test_a_damaged_tokenizer(content: bytes, copy: Path) -> None:
    (copy / "tokenizer.json").write_bytes(content)
    with Engine.open(copy) as engine, pytest.raises(DamagedFileError):
        engine.model.tokenizer()


def test_a_tokenizer_of_another_model(copy: Path, tiny_config: Any) -> None:
    said = json.loads((copy / "tokenizer.json").read_text())
    said["model"]["vocab"].update({f"token{index}": index for index in range(300, 400)})
    (copy / "tokenizer.json").write_text(json.dumps(said))
    with Engine.open(copy) as engine, pytest.raises(UserError, match="belongs to another model"):
        engine.model.tokenizer()


def test_no_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with Engine.open(copy) as engine, pytest.raises(UserError, match=r"tokenizer\.json"):
        engine.model.tokenizer()


def test_a_damaged_generation_config(copy: Path) -> None:
    (copy / "generation_config.json").write_text("{")
    with pytest.raises(DamagedFileError):
        Engine.open(copy)


def test_end_tokens_of_generation_config_count(copy: Path) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    with Engine.open(copy) as engine:
        assert engine.model.end_of_text == (0, 5, 7)
