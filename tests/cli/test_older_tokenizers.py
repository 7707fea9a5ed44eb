"""A checkpoint with vocab.json and merges.txt runs as it is; its pack holds the tokenizer made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.cli import main
from haversack.core.pack import Pack, check_pack
from haversack.formats.safetensors import write_safetensors
from haversack.models import Tokenizer, read_architecture
from haversack.models._tokenizer import byte_of_character

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small random GPT-2-like vocabulary on a small random Llama."""
    path = tmp_path / "old"
    path.mkdir()
    vocabulary = {letter: number for number, letter in enumerate(byte_of_character())}
    vocabulary |= {"th": 256, "Ġth": 257, "<|endoftext|>": 258}
    config = {
        "model_type": "llama",
        "vocab_size": 259,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "eos_token_id": 258,
    }
    rng = np.random.default_rng(1)
    tensors = [
        (name, "f32", shape, (rng.standard_normal(shape, np.float32) / 8).data)
        for name, shape in read_architecture(config).tensors().items()
    ]
    write_safetensors(path / "model.safetensors", tensors)
    written: dict[str, Any] = {
        "config.json": config,
        "vocab.json": vocabulary,
        "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "chat_template": TEMPLATE},
        "special_tokens_map.json": {"eos_token": "<|endoftext|>"},
    }
    for name, value in written.items():
        (path / name).write_text(json.dumps(value), encoding="utf-8")
    (path / "merges.txt").write_text("#version: 0.2\nt h\nĠ th\n", encoding="utf-8")
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


def test_it_runs_and_packs(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = ("--prompt", "the thin thread", "--max-tokens", "6", "--json")
    assert main(["run", str(folder), *said]) == 0
    straight = json.loads(capsys.readouterr().out)
    assert straight["prompt_tokens"] == len("the thin thread") - 5  # three times th, two with their space
    goal = tmp_path / "old.pack"
    text = tmp_path / "text"
    text.write_text("the thin thread th th th " * 500)
    words = ["--device", "laptop", "--precision", "keep:kind=f32", "--effort", "0", "-o", str(goal)]
    words += ["--evaluation", str(text)]
    assert main(["pack", str(folder), *words, "--json"]) == 0
    capsys.readouterr()
    assert check_pack(goal) == []
    pack = Pack.open(goal)
    made = Tokenizer.of_bytes(pack.read_file("tokenizer.json"))
    assert made.table() == Tokenizer.of_folder(folder).table()
    for name in ("chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json"):
        assert pack.read_file(name) == (folder / name).read_bytes()
    assert not (folder / "tokenizer.json").exists()  # the checkpoint is left as it was
    assert main(["run", str(goal), "--activations", "f32", "--cache-type", "f32", *said]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == straight["text"]
