"""The shipped folders: sizes within the bars, one tokenizer for both, every string comes back unchanged."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import hypothesis.strategies as strategies
import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer

MODELS = Path(__file__).resolve().parents[2] / "src" / "haversack" / "reference_models"
BOTH = ("code", "code-draft")
BYTES_OF_BOTH = 28_000_000


def folder(name: str) -> Path:
    if not (MODELS / name / "model.safetensors").is_file():
        pytest.skip(f"the weights of {name} are not in this checkout")
    return MODELS / name


def tensors(name: str) -> dict[str, Any]:
    with (folder(name) / "model.safetensors").open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header


def parameters(name: str) -> int:
    return sum(math.prod(tensor["shape"]) for tensor in tensors(name).values())


def test_code_has_the_declared_size() -> None:
    embedding = math.prod(tensors("code")["model.embed_tokens.weight"]["shape"])
    assert 8_000_000 <= parameters("code") <= 12_000_000
    assert embedding <= parameters("code") / 4


def test_draft_has_at_most_a_million_parameters() -> None:
    assert parameters("code-draft") <= 1_000_000


@pytest.mark.parametrize("name", BOTH)
def test_weights_are_half_precision_llama(name: str) -> None:
    config = json.loads((folder(name) / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llama"
    assert config["max_position_embeddings"] == 2048
    assert config["tie_word_embeddings"] is True
    assert {tensor["dtype"] for tensor in tensors(name).values()} == {"F16"}
    assert tensors(name)["model.embed_tokens.weight"]["shape"] == [
        config["vocab_size"],
        config["hidden_size"],
    ]


def test_both_share_one_tokenizer_and_fit_the_limit() -> None:
    code, draft = folder("code"), folder("code-draft")
    assert (code / "tokenizer.json").read_bytes() == (draft / "tokenizer.json").read_bytes()
    assert sum((place / "model.safetensors").stat().st_size for place in (code, draft)) <= BYTES_OF_BOTH


def code_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(folder("code") / "tokenizer.json"))


@settings(max_examples=300, deadline=None)
@given(strategies.text(strategies.characters(exclude_categories=("Cs",))))
def test_every_string_comes_back(text: str) -> None:
    tokenizer = code_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_indentation_is_one_token_and_digits_stand_alone() -> None:
    tokens = code_tokenizer().encode("\n        return 1234").tokens
    assert tokens[0] == "Ċ" + 8 * "Ġ"
    assert tokens[-3:] == ["2", "3", "4"]


def test_end_of_text_is_token_zero() -> None:
    tokenizer = code_tokenizer()
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    assert tokenizer.get_vocab_size() == 5120
