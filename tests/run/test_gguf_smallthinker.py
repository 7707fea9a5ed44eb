"""SmallThinker in GGUF, written by the format's own package as converters do: read as stored, packed with
its experts matrix by matrix; other mixtures stay refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests.run.conftest import END, draw, tokenizer_json, write_folder
from tests.run.experts import SMALLTHINKER

from haversack.core._record import STORE_NAME
from haversack.core.errors import UserError
from haversack.core.expert_store import ExpertStore
from haversack.core.pack import check_pack
from haversack.formats.safetensors import write_safetensors
from haversack.models import read_architecture
from haversack.models._gguf_write import write_gguf
from haversack.plan._gguf_job import GgufJob
from haversack.run import Engine
from haversack.run._source import open_model

CONFIG: dict[str, Any] = {
    **SMALLTHINKER,
    "num_hidden_layers": 5,
    "vocab_size": 320,
    "rope_layout": [0, 1, 1, 1, 0],
    "sliding_window_layout": [0, 1, 1, 1, 0],
    "sliding_window_size": 4096,
}
TEXT = np.random.default_rng(3).integers(3, 280, 24).astype(np.int32)


def converted(
    path: Path, config: dict[str, Any], kind: str = "Q4_0", architecture: str = "smallthinker", **other: Any
) -> dict[str, np.ndarray]:
    """The file, and what was stored, dequantized, under the hub's names."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["moe_ffn_hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_expert_count(config["moe_num_primary_experts"])
    writer.add_expert_used_count(other.get("used", config["moe_num_active_primary_experts"]))
    writer.add_expert_feed_forward_length(config["moe_ffn_hidden_size"])
    writer.add_uint32(f"{architecture}.expert_gating_func", other.get("gating", 2))
    writer.add_sliding_window(other.get("window", config["sliding_window_size"]))
    vocabulary = json.loads(tokenizer_json())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    texts = list(vocabulary["vocab"])
    texts += [f"[PAD{n}]" for n in range(len(texts), config["vocab_size"])]
    writer.add_token_list(texts)
    writer.add_token_types([3, *[1] * (len(vocabulary["vocab"]) - 1), *[5] * (len(texts) - 269)])
    writer.add_token_merges(vocabulary["merges"])
    writer.add_bos_token_id(END)
    writer.add_eos_token_id(END)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.SMALLTHINKER, config["num_hidden_layers"])
    stored: dict[str, np.ndarray] = {}
    stacks: dict[str, list[np.ndarray]] = {}

    def add(name: str, values: np.ndarray, kind: str) -> np.ndarray:
        of_type = gguf.GGMLQuantizationType[kind]
        data = gguf.quants.quantize(np.ascontiguousarray(values), of_type)
        writer.add_tensor(name, data, raw_dtype=None if kind == "F32" else of_type)
        return gguf.quants.dequantize(data, of_type).reshape(values.shape)

    for name, values in draw(config).items():
        given = values.astype(np.float32)
        if ".experts." in name:
            module, _, rest = name.partition(".experts.")
            stacks.setdefault(f"{module}.{rest.split('.')[1]}", []).append(given)
            stored[name] = gguf.quants.dequantize(
                gguf.quants.quantize(given, gguf.GGMLQuantizationType[kind]), gguf.GGMLQuantizationType[kind]
            )
            continue
        plain = given.ndim == 1 or "router" in name
        module = name.removesuffix(".weight").replace("block_sparse_moe.primary_router", "mlp.gate")
        found = names.get_name(module)
        assert found is not None, name
        stored[name] = add(f"{found}.weight", given, "F32" if plain else kind)
    for module, matrices in stacks.items():
        block, part = module.split(".")[2], module.rpartition(".")[2]
        add(f"blk.{block}.ffn_{part}_exps.weight", np.stack(matrices), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def logits(source: Any, **slots: Any) -> np.ndarray:
    with Engine.open(source, activations="f32", **slots) as engine:
        found, _ = engine.step(TEXT, cache=engine.cache(40), want="all")
    assert found is not None
    return found


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
def test_it_runs_as_stored(kind: str, tmp_path: Path) -> None:
    stored = converted(tmp_path / "x.gguf", CONFIG, kind)
    opened = open_model(tmp_path / "x.gguf")
    assert opened.architecture.blocks == read_architecture(CONFIG).blocks
    folder = write_folder(tmp_path / "folder", CONFIG)
    tensors = [(name, "f32", values.shape, values.tobytes()) for name, values in stored.items()]
    write_safetensors(folder / "model.safetensors", tensors)
    exact = logits(folder)
    found = logits(tmp_path / "x.gguf", residency="copied")
    assert np.abs(found - exact).max() <= 1e-4 * np.abs(exact).max()


def test_packed_as_stored_its_experts_stream_by_matrix(tmp_path: Path) -> None:
    converted(tmp_path / "x.gguf", CONFIG)
    job = GgufJob.of(str(tmp_path / "x.gguf"), None, None)
    assert job.kept
    goal = job.write(tmp_path / "x.pack", origin=False).path
    assert check_pack(goal) == []
    with ExpertStore.open(goal / STORE_NAME) as store:
        assert len(store.records) == 5 * 6 * 3
    expected = logits(tmp_path / "x.gguf", residency="copied")
    assert np.array_equal(logits(goal, residency="copied"), expected)
    assert np.array_equal(logits(goal, residency="streamed:smallthinker,buffer_kib=0"), expected)


def test_a_file_without_a_window_has_positions_everywhere(tmp_path: Path) -> None:
    converted(tmp_path / "x.gguf", CONFIG, window=0)
    blocks = open_model(tmp_path / "x.gguf").architecture.blocks
    assert all(block.attention.rope is not None and block.attention.window is None for block in blocks)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"window": 512}, r"attention\.sliding_window=512, but llama\.cpp reads SmallThinker with windows"),
        ({"gating": 3}, "expert_gating_func=3 is none of SmallThinker's"),
        ({"used": 7}, r"moe_num_active_primary_experts=7 is more than moe_num_primary_experts=6"),
    ],
)
def test_what_no_released_model_has_is_refused(other: dict[str, int], words: str, tmp_path: Path) -> None:
    converted(tmp_path / "x.gguf", CONFIG, **other)
    with pytest.raises(UserError, match=words):
        open_model(tmp_path / "x.gguf")


def test_other_mixtures_and_writing_stay_refused(tmp_path: Path) -> None:
    converted(tmp_path / "x.gguf", CONFIG, architecture="llama")
    with pytest.raises(UserError, match=r"mixture of experts .* read from GGUF for smallthinker alone"):
        open_model(tmp_path / "x.gguf")
    folder = write_folder(tmp_path / "folder", CONFIG)
    with pytest.raises(UserError, match="mixture of experts, which is not written as GGUF"):
        write_gguf(open_model(folder), tmp_path / "y.gguf")
