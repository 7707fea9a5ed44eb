"""Tokenizers rebuilt from GGUF's metadata, and metadata made of tokenizers, beside the originals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.gguf import GgufFile, write_gguf_file
from haversack.models._bundled import model_folder
from haversack.models._gguf_pre import PRES
from haversack.models._gguf_tokenizer import merges_of, tokenizer, tokenizer_json
from haversack.models._gguf_tokenizer_out import tokenizer_entries

TEXT = [
    "def read_json(path):\n    with open(path) as file:\n        return json.load(file)\n",
    "Ünïcödé and naïve café, it's I'LL don't WE'VE 1234567 times 3.14; 你好世界 日本語 한국어\n",
    "The quick brown fox jumps over the lazy dog 12 times, the other dogs sleep.\n\n  indented\ttabs\r\n",
    "for i in range(10):\n    print(i, end=' ')  # comment\nelse:\n    pass\n",
] * 4
STRINGS = [
    "",
    " ",
    "  leading and trailing  ",
    "it's I'LL we'Ve",
    "a\n\n\n b\r\n\tc",
    "12345 678 9",
    "<|end|>text<|user|> more <|end|>",
    "名前は日本語 123 ½²",
    "emoji 😀🎉 and ◌́ é",
    "\u00a0\u3000nbsp",
    "{}[]()<>/\\|@#$%^&*-_=+~`",
    *TEXT[:4],
]


def byte_level(pre: str, size: int = 400) -> Any:
    """A tokenizer trained by its library whose words are cut as `pre` says."""
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=PRES[pre].whole))
    cuts = [
        pre_tokenizers.Split(tokenizers.Regex(one), "isolated", invert=False) for one in PRES[pre].patterns
    ]
    made.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end|>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXT, trainer)
    return made


def file_of(path: Path, entries: dict[str, Any]) -> GgufFile:
    write_gguf_file(path, {"general.architecture": ("string", "llama"), **entries}, [])
    return GgufFile.open(path)


def entries_of(original: Any, start: int | None = 0, ends: tuple[int, ...] = (0,)) -> Any:
    data = original.to_str().encode()
    return tokenizer_entries(data, "tokenizer.json", original.get_vocab_size(), start, ends)


@pytest.mark.parametrize("pre", sorted({id(one): name for name, one in sorted(PRES.items())}.values()))
def test_a_byte_level_tokenizer_cuts_as_the_original(tmp_path: Path, pre: str) -> None:
    original = byte_level(pre)
    written = entries_of(original)
    named = written.entries["tokenizer.ggml.pre"][1]
    assert written.changes == [] and PRES[named].patterns == PRES[pre].patterns
    assert "tokenizer.huggingface.json" not in written.entries
    rebuilt = tokenizer(file_of(tmp_path / "x.gguf", written.entries))
    assert rebuilt.size == original.get_vocab_size()
    for text in STRINGS:
        tokens = original.encode(text).ids
        assert rebuilt.encode(text) == tokens, text
        assert rebuilt.decode(tokens) == original.decode(tokens), text


ORIGINAL = byte_level("llama-bpe")


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_is_cut_alike(tmp_path_factory: Any, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    if not path.exists():
        file_of(path, entries_of(ORIGINAL).entries)
    assert tokenizer(GgufFile.open(path)).encode(text) == ORIGINAL.encode(text).ids


@pytest.mark.parametrize(("starts", "ends"), [(True, False), (False, True), (True, True), (False, False)])
def test_marks_around_a_text_go_there_and_back(tmp_path: Path, starts: bool, ends: bool) -> None:
    original = byte_level("qwen2")
    parts = ["<|user|>"] * starts + ["$A"] + ["<|end|>"] * ends
    if starts or ends:
        original.post_processor = processors.TemplateProcessing(
            single=parts, special_tokens=[("<|end|>", 0), ("<|user|>", 1)]
        )
    rebuilt = tokenizer(file_of(tmp_path / "x.gguf", entries_of(original, None).entries))
    for text in ("", "one two"):
        assert rebuilt.encode(text) == original.encode(text).ids
        plain = original.encode(text, add_special_tokens=False).ids
        assert rebuilt.encode(text, special=False) == plain


def test_tokens_of_the_user_are_found_and_shown(tmp_path: Path) -> None:
    original = byte_level("smollm")
    original.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
    rebuilt = tokenizer(file_of(tmp_path / "x.gguf", entries_of(original).entries))
    tokens = original.encode("a<think>b").ids
    assert rebuilt.encode("a<think>b") == tokens and rebuilt.decode(tokens) == "a<think>b"


def test_a_pattern_without_a_name_is_told_and_kept_whole(tmp_path: Path) -> None:
    data = (model_folder("code") / "tokenizer.json").read_bytes()
    written = tokenizer_entries(data, "tokenizer.json", 5120, 0, (0,))
    assert any("no name for how it cuts" in change for change in written.changes)
    rebuilt = tokenizer(file_of(tmp_path / "x.gguf", written.entries))
    original = tokenizers.Tokenizer.from_buffer(data)
    assert all(rebuilt.encode(text) == original.encode(text).ids for text in STRINGS)


def small_table(tokens: list[str], merges: list[str]) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": ("string", "gpt2"),
        "tokenizer.ggml.tokens": ("[string]", tokens),
        "tokenizer.ggml.merges": ("[string]", merges),
    }


@pytest.mark.parametrize(
    ("merges", "pairs"),
    [
        (["a b", 'ab "', "é \\"], [("a", "b"), ("ab", '"'), ("é", "\\")]),
        (["a b", "  b", "a  b"], [("a", "b"), (" ", "b"), ("a", " b")]),
    ],
)
def test_a_space_may_be_part_of_a_merged_token(tmp_path: Path, merges: list[str], pairs: Any) -> None:
    """Merges are read as lines where that is safe, and as pairs where a token holds a space."""
    tokens = ["a", "b", '"', "\\", "é", " ", "", "\u2028", *("".join(pair) for pair in pairs)]
    file = file_of(tmp_path / "x.gguf", small_table(tokens, merges))
    assert tokenizer(file).size == len(tokens)
    model = json.loads(tokenizer_json(file))["model"]
    assert model["vocab"] == {text or "[EMPTY_6]": index for index, text in enumerate(tokens)}
    found = [tuple(one.split(" ")) if isinstance(one, str) else tuple(one) for one in model["merges"]]
    assert found == pairs


@pytest.mark.parametrize("merge", ["ab", "a ", " b"])
def test_a_merge_of_one_token_is_refused_in_words(tmp_path: Path, merge: str) -> None:
    with pytest.raises(DamagedFileError, match="does not name two tokens"):
        tokenizer(file_of(tmp_path / "x.gguf", small_table(["a", "b", "ab"], ["a b", merge])))


def pieces(folder: Path, prefix: bool) -> Any:
    """A SentencePiece model of scored pieces, trained by its own library."""
    text = folder / "text.txt"
    text.write_text("".join(TEXT), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "pieces"),
        vocab_size=450,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "pieces.model"))


def piece_entries(model: Any, prefix: bool) -> dict[str, Any]:
    def kind(index: int) -> int:
        if model.is_unknown(index):
            return 2
        return 3 if model.is_control(index) else 6 if model.is_byte(index) else 1

    count = model.get_piece_size()
    return {
        "tokenizer.ggml.model": ("string", "llama"),
        "tokenizer.ggml.tokens": ("[string]", [model.id_to_piece(i) for i in range(count)]),
        "tokenizer.ggml.scores": ("[f32]", [model.get_score(i) for i in range(count)]),
        "tokenizer.ggml.token_type": ("[i32]", [kind(i) for i in range(count)]),
        "tokenizer.ggml.bos_token_id": ("u32", model.bos_id()),
        "tokenizer.ggml.eos_token_id": ("u32", model.eos_id()),
        "tokenizer.ggml.add_space_prefix": ("bool", prefix),
        "tokenizer.ggml.add_bos_token": ("bool", False),
    }


@pytest.mark.parametrize("prefix", [True, False])
def test_scored_pieces_are_cut_as_sentencepiece_cuts(tmp_path: Path, prefix: bool) -> None:
    model = pieces(tmp_path, prefix)
    rebuilt = tokenizer(file_of(tmp_path / "x.gguf", piece_entries(model, prefix)))
    for text in [one for one in STRINGS if "<|" not in one]:
        assert rebuilt.encode(text) == model.encode(text), text
        assert rebuilt.decode(model.encode(text)) == model.decode(model.encode(text)), text


def test_scored_pieces_go_there_and_back(tmp_path: Path) -> None:
    """Metadata -> tokenizer.json -> metadata: the scores' order says the same merges."""
    model = pieces(tmp_path, True)
    data = tokenizer_json(file_of(tmp_path / "x.gguf", piece_entries(model, True)))
    written = tokenizer_entries(data, "tokenizer.json", model.get_piece_size(), None, ())
    assert written.changes == []
    rebuilt = tokenizer(file_of(tmp_path / "y.gguf", written.entries))
    for text in [one for one in STRINGS if "<|" not in one]:
        assert rebuilt.encode(text) == model.encode(text), text


def test_merges_follow_scores() -> None:
    table = {text: index for index, text in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    found = list(merges_of(table, [0, 0, 0, -1.0, -0.5, -2.0]))
    assert found == [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")]


def test_other_kinds_of_tokenizers_are_refused_in_words() -> None:
    unigram = json.dumps({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}).encode()
    with pytest.raises(UserError, match="of the type Unigram"):
        tokenizer_entries(unigram, "x", 10, None, ())
    with pytest.raises(DamagedFileError, match=r"no tokenizer\.json"):
        tokenizer_entries(b"[]", "x", 10, None, ())
