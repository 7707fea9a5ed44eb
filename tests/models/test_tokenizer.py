"""Text survives tokenizing, and streamed text is the text, whatever the cut."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import DamagedFileError, UserError
from haversack.models import Tokenizer
from haversack.models._tokenizer import byte_of_character


def vocabulary(kind: str) -> dict[str, Any]:
    """A small tokenizer.json: byte-level, byte-fallback (SentencePiece's form), or whole words only."""
    added = [
        {
            "id": 0,
            "content": "<|end|>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        },
        {
            "id": 1,
            "content": "<tool>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": False,
        },
    ]
    words = {"<|end|>": 0, "<tool>": 1}
    said: dict[str, Any] = {"version": "1.0", "added_tokens": added}
    if kind == "bytes":
        letters = {byte: character for character, byte in byte_of_character().items()}
        words |= {letters[byte]: byte + 2 for byte in range(256)}
        merges = ["t h", "Ġ a", "Ã ©"]
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        said |= {"pre_tokenizer": level, "decoder": level}
    elif kind == "fallback":
        words |= {f"<0x{byte:02X}>": byte + 2 for byte in range(256)}
        for letter in "▁abcdeé":
            words.setdefault(letter, len(words))
        merges = ["a b", "▁ a", "▁ ▁"]
        said["normalizer"] = {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        }
        said["decoder"] = {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        }
    else:
        words |= {"ab": 2, "cd": 3, "##ef": 4, "[UNK]": 5}
        said["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
        said["pre_tokenizer"] = {"type": "Whitespace"}
        said["model"] = {
            "type": "WordPiece",
            "vocab": words,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        }
        return said
    for merge in merges:
        left, right = merge.split()
        words.setdefault(left + right, len(words))
    said["model"] = {
        "type": "BPE",
        "vocab": words,
        "merges": merges,
        "byte_fallback": kind == "fallback",
        "fuse_unk": False,
    }
    return said


@cache
def tokenizer(kind: str) -> Tokenizer:
    return Tokenizer.of_bytes(json.dumps(vocabulary(kind)).encode())


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=40).filter(
    lambda text: "<tool>" not in text and "<|end|>" not in text and "▁" not in text
)


@pytest.mark.parametrize("kind", ["bytes", "fallback"])
@settings(deadline=None)
@given(text=texts)
def test_text_survives(kind: str, text: str) -> None:
    own = tokenizer(kind)
    tokens = own.encode(text)
    assert own.decode(tokens) == text
    pieces = own.stream()
    out = ""
    for token in tokens:
        out += pieces.add(token)
        assert text.startswith(out)  # what was given out never changes
    assert out + pieces.finish() == text


@pytest.mark.parametrize("kind", ["bytes", "fallback", "words"])
@settings(deadline=None)
@given(data=st.data())
def test_any_tokens_stream_as_they_decode(kind: str, data: st.DataObject) -> None:
    """Tokens in any order, bytes that are no UTF-8 included: pieces joined are what the library decodes."""
    own = tokenizer(kind)
    tokens = data.draw(st.lists(st.integers(0, own.size - 1), max_size=20))
    stream = own.stream()
    joined = "".join([*(stream.add(token) for token in tokens), stream.finish()])
    if kind != "fallback":  # there the library writes one U+FFFD a byte, we one a broken character
        plain = [token for token in tokens if token not in (0, 1)]
        if plain == tokens:
            assert joined == own._library.decode(tokens)
    assert own.decode(tokens) == joined


def test_a_character_waits_for_its_last_byte() -> None:
    own = tokenizer("bytes")
    tokens = own.encode("🎉")
    assert len(tokens) == 4
    stream = own.stream()
    assert [stream.add(token) for token in tokens] == ["", "", "", "🎉"]
    stream = own.stream()
    assert [stream.add(token) for token in tokens[:2]] == ["", ""]
    assert stream.finish() == "\ufffd"


def test_special_tokens_are_no_text_and_added_ones_are() -> None:
    own = tokenizer("bytes")
    assert own.is_special(0) and not own.is_special(1)
    assert own.decode([0, *own.encode("a<tool>b"), 0]) == "a<tool>b"
    assert own.token("<|end|>") == 0 and own.token("nothing") is None


def test_the_first_space_of_sentencepiece_is_no_text() -> None:
    own = tokenizer("fallback")
    assert own.bytes_of(own.encode("ab")[0]) in (b" a", b" ")
    assert own.decode(own.encode(" ab")) == " ab"


def test_what_is_no_tokenizer(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        Tokenizer.open(tmp_path / "absent.json")
    (tmp_path / "cut.json").write_bytes(json.dumps(vocabulary("bytes")).encode()[:-40])
    with pytest.raises(DamagedFileError, match="it is no tokenizer"):
        Tokenizer.open(tmp_path / "cut.json")
