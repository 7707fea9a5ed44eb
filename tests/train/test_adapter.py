"""PEFT adapters: read as the library writes them, merged, and refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.safetensors import HubFolder
from haversack.models import read_architecture
from haversack.models._adapter import (
    merged,
    merged_tensors,
    read_adapter,
    require_above,
    require_tokenizer,
)

HEAD = {"lm_head": (257, 64)}


def architecture_of(base: Path) -> Any:
    return read_architecture(HubFolder.open(base).config)


def test_an_adapter_is_read_and_merged(base: Path, peft: Any, upper: Any) -> None:
    source, architecture = HubFolder.open(base), architecture_of(base)
    adapter = read_adapter(peft(upper), architecture)
    assert adapter.blocks == (2, 3) and adapter.layers_to_transform == (2, 3)
    assert set(adapter.pairs) == {f"{name}.weight" for name in upper}
    pair = adapter.pairs["model.layers.3.mlp.down_proj.weight"]
    assert (pair.rank, pair.block, pair.scale) == (4, 3, 2.0)
    found = {
        name: np.frombuffer(b"".join(map(bytes, pieces())), "<f4").reshape(shape)
        for name, kind, shape, _, pieces in merged_tensors(source, architecture, adapter.pairs)
    }
    assert list(found) == list(architecture.tensors())
    for name, values in found.items():
        plain = np.frombuffer(source.bytes(name), "<f4").reshape(values.shape)
        if name in adapter.pairs:
            each = adapter.pairs[name]
            exact = plain.astype(np.float64) + 2.0 * each.second.astype(np.float64) @ each.first
            assert np.abs(values - exact).max() < 1e-5
            assert np.array_equal(values, merged(plain, each))
        else:
            assert np.array_equal(values, plain)


def test_scales_and_patterns(base: Path, peft: Any, upper: Any) -> None:
    architecture = architecture_of(base)
    rooted = read_adapter(peft(upper, use_rslora=True), architecture)
    assert {pair.scale for pair in rooted.pairs.values()} == {4.0}
    patterned = read_adapter(
        peft(upper, r=16, rank_pattern={"q_proj": 4, "down_proj": 4}, alpha_pattern={"q_proj": 2}),
        architecture,
    )
    scales = {pair.name.split(".")[-2]: pair.scale for pair in patterned.pairs.values()}
    assert scales == {"q_proj": 0.5, "down_proj": 2.0}


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"use_dora": True}, "use_dora"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"r": 0}, "r"),
        ({"r": "4"}, "r"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern"),
        ({"layers_to_transform": [2, 9]}, "layers_to_transform"),
        ({"layers_to_transform": "2"}, "layers_to_transform"),
        ({"r": 8}, "adapter"),
    ],
)
def test_configs_that_ask_for_more(
    base: Path, peft: Any, upper: Any, config: dict[str, Any], field: str
) -> None:
    with pytest.raises(UserError) as refused:
        read_adapter(peft(upper, **config), architecture_of(base))
    assert refused.value.field == field and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("matrices", "said"),
    [
        (HEAD, "lm_head.weight, which is no attention or feed-forward matrix"),
        ({"model.norm": (64, 64)}, "model.norm.weight"),
        ({"model.layers.2.input_layernorm": (64, 64)}, "input_layernorm"),
        ({"model.layers.9.self_attn.q_proj": (64, 64)}, "the base has 4 blocks"),
        ({"model.layers.2.self_attn.q_proj": (64, 32)}, "made for another model or rank"),
        ({"model.layers.2.self_attn.q_proj": (32, 64)}, "made for another model or rank"),
    ],
)
def test_what_is_no_lora_of_this_base_is_named(
    base: Path, peft: Any, matrices: dict[str, tuple[int, int]], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        read_adapter(peft(matrices), architecture_of(base))


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.norm.weight",
        "base_model.model.lm_head.weight",
        "base_model.model.model.layers.2.self_attn.q_proj.lora_magnitude_vector",
    ],
)
def test_tensors_beside_the_pairs_are_named(base: Path, peft: Any, upper: Any, name: str) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    folder = peft(upper)
    file = folder / "adapter_model.safetensors"
    tensors = safetensors.load_file(file)
    safetensors.save_file({**tensors, name: np.ones((4, 4), np.float32)}, file)
    with pytest.raises(UserError, match="belong to the base") as refused:
        read_adapter(folder, architecture_of(base))
    assert refused.value.given == name


def test_halves_and_numbers_that_do_not_hold(base: Path, peft: Any, upper: Any, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    folder = peft(upper)
    file = folder / "adapter_model.safetensors"
    tensors = safetensors.load_file(file)
    name = "base_model.model.model.layers.2.self_attn.q_proj.lora_B.weight"
    safetensors.save_file({key: value for key, value in tensors.items() if key != name}, file)
    with pytest.raises(DamagedFileError, match="has no lora_B"):
        read_adapter(folder, architecture_of(base))
    safetensors.save_file({**tensors, name: tensors[name] * np.float32(np.nan)}, file)
    with pytest.raises(DamagedFileError, match="not finite"):
        read_adapter(folder, architecture_of(base))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DamagedFileError):
        read_adapter(folder, architecture_of(base))
    file.unlink()
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="is a pickle"):
        read_adapter(folder, architecture_of(base))
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        read_adapter(base, architecture_of(base))


def test_the_anchor_is_left_alone(base: Path, peft: Any, upper: Any) -> None:
    architecture = architecture_of(base)
    require_above(read_adapter(peft(upper), architecture), 2, "cloud")
    with pytest.raises(UserError, match=r"block 2 .*q_proj.*belongs to the anchor of 3 blocks"):
        require_above(read_adapter(peft(upper), architecture), 3, "cloud")
    with pytest.raises(UserError, match="block 1, which belongs to the anchor"):
        require_above(read_adapter(peft(upper, layers_to_transform=[1, 2, 3]), architecture), 2, "cloud")
    everywhere = {**upper, "model.layers.0.self_attn.q_proj": (64, 64)}
    public = read_adapter(peft(everywhere, layers_to_transform=None), architecture)
    with pytest.raises(UserError, match=r"names no layers_to_transform.* it changes block 0"):
        require_above(public, 1, "cloud")
    silent = read_adapter(peft(upper, layers_to_transform=None), architecture)
    with pytest.raises(UserError, match="names no layers_to_transform"):
        require_above(silent, 1, "cloud")
    with pytest.raises(DamagedFileError, match="changes block 0, which layers_to_transform leaves out"):
        read_adapter(peft(everywhere), architecture)


def test_another_tokenizer_is_refused(base: Path, peft: Any, upper: Any) -> None:
    folder = peft(upper)
    require_tokenizer(folder, base)
    text = (base / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text)
    require_tokenizer(folder, base)
    other = json.loads(text)
    other["added_tokens"].append({"id": 257, "content": "<new>", "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="another tokenizer"):
        require_tokenizer(folder, base)


def test_families_without_adapters_are_named(peft: Any, upper: Any, tmp_path: Path) -> None:
    config = {
        "model_type": "gpt2",
        "vocab_size": 96,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
    }
    with pytest.raises(UserError, match="gpt2 models have no adapters") as refused:
        read_adapter(peft(upper), read_architecture(config))
    assert refused.value.nearest == "llama"
