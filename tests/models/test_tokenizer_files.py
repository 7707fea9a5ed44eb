"""Tokenizers made of vocab.txt, vocab.json with merges.txt and of SentencePiece models equal the reference.

Small vocabularies are trained here; the references are `sentencepiece` itself and the classes of
`transformers`, on some thousand strings of words, runs of spaces, control characters, emoji, Chinese, marks.
"""

from __future__ import annotations

import io
import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.index import source_root
from haversack.models import Tokenizer
from haversack.models.tokenizers import tokenizer_json

ROOT = source_root()
assert ROOT is not None
TEXT = (ROOT / "README.md").read_text(encoding="utf-8") + (ROOT / "docs" / "format.md").read_text(
    encoding="utf-8"
)
STRANGE = (
    *("", " ", "  ", "     ", "\t", "\n", "\r\n", "\x00", "\x07", "\u200b", "\u00a0", "\u3000", "\ufffd"),
    *("é", "e\u0301", "İ", "ß", "ﬁ", "①", "ａｂ", "Å", "日本", "中文字", "한글", "ไทย", "עברית", "العربية"),
    *(
        "😀",
        "👨\u200d👩\u200d👧",
        "\U0001f3f4",
        "aba",
        "ababa",
        "!!!",
        "'s",
        "I'll",
        "1234567",
        "3.14",
        "x_y",
    ),
    *("UPPER", "CamelCase", "don't", "<unknown>", "[MASK", "▁", "##a", "a" * 120),
)


def strings(seed: int, count: int, without: tuple[str, ...] = ()) -> list[str]:
    """`count` strings of words of the text and strange parts; none contains one of `without`."""
    rng = random.Random(seed)
    words = TEXT.split()
    found = list(STRANGE)
    while len(found) < count:
        parts = rng.choices((*STRANGE, *rng.sample(words, 40), *[" "] * 40), k=rng.randrange(12))
        found.append("".join(parts))
    return [text for text in found if not any(part in text for part in without)]


def differing(own: Tokenizer, reference: Callable[[str], Any], texts: list[str]) -> list[Any]:
    """(text, our tokens, the reference's) wherever they differ, five at most."""
    found = [(text, own.encode(text), list(reference(text))) for text in texts]
    return [one for one in found if one[1] != one[2]][:5]


def write(folder: Path, **files: Any) -> Path:
    """A folder of files: names with `_` for the last dot, JSON for what is no text or bytes."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / ".".join(name.rsplit("_", 1))
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def trained(kind: str, **settings: Any) -> bytes:
    """A SentencePiece model trained on the text."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        vocab_size=600,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return model.getvalue()


LLAMA = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "as trained by default": {},
    "llama": LLAMA,
    "gemma": {**LLAMA, "add_dummy_prefix": False},
    "user-defined pieces": {"user_defined_symbols": ["<tool>", "\t", "日本"], **LLAMA},
    "folded": {"normalization_rule_name": "nmt_nfkc_cf"},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece_models_encode_as_sentencepiece(tmp_path: Path, kind: str, name: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = trained(kind, **SETTINGS[name])
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}
    own = Tokenizer.of_folder(write(tmp_path / "m", tokenizer_model=model, tokenizer_config_json=config))
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = [*strings(1, 1500), *(["a<tool>b", "<tool><tool> x\t\ty"] if "user" in name else [])]

    def score(tokens: list[int]) -> float:
        return sum(reference.get_score(token) for token in tokens)

    for text, ours, theirs in differing(own, reference.encode, texts):
        # Two splits of equal probability: which of them is taken is rounding's choice.
        assert kind == "unigram" and score(ours) == pytest.approx(score(theirs), abs=1e-4), text
    assert Tokenizer.open(tmp_path / "m" / "tokenizer.json").encode("a b") == own.encode("a b")
    assert own.size == reference.get_piece_size()
    for text in texts[:200] if name in ("llama", "gemma") else []:
        assert own.decode(own.encode(text)) == text.replace("▁", " ")


@pytest.mark.parametrize("legacy", [True, False, None])
@pytest.mark.parametrize("ends", [(True, False), (False, True), (None, None)])
def test_what_goes_around_a_text(tmp_path: Path, legacy: bool | None, ends: tuple[bool | None, ...]) -> None:
    """The start and the end as the config says, the class's custom where it says nothing; added tokens in
    the text are found, and with `legacy` off no space follows them."""
    said = {"legacy": legacy, "add_bos_token": ends[0], "add_eos_token": ends[1]}
    config = {"tokenizer_class": "LlamaTokenizerFast"} | {k: v for k, v in said.items() if v is not None}
    config["additional_special_tokens"] = ["<|user|>"]
    folder = write(tmp_path / "m", tokenizer_model=trained("bpe", **LLAMA), tokenizer_config_json=config)
    own = Tokenizer.of_folder(folder)
    pieces = [own._library.id_to_token(token) for token in own.encode("is<|user|>the")]
    assert (pieces[0] == "<s>") == (ends[0] is not False)
    assert (pieces[-1] == "</s>") == (ends[1] is True)
    after = pieces[pieces.index("<|user|>") + 1]
    assert after.startswith("▁") == (legacy is not False)
    assert own.token("<|user|>") == own.size - 1 and own.is_special(own.size - 1)
    assert own.decode(own.encode("is the pack")) == "is the pack"


def test_a_model_that_is_not_legacy_equals_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}
    folder = write(tmp_path / "m", tokenizer_model=trained("bpe", **LLAMA), tokenizer_config_json=config)
    made = tokenizer_json(folder)
    reference = transformers.LlamaTokenizer.from_pretrained(folder)
    own = Tokenizer.of_bytes(made)
    # There merges are ranked by number, here by score; these vocabularies have one order for both.
    assert not differing(own, lambda text: reference(text)["input_ids"], strings(2, 800))


def test_xlm_r_numbers_its_pieces_anew(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    files = {"sentencepiece_bpe_model": trained("unigram"), "tokenizer_config_json": {}}
    folder = write(tmp_path / "m", **files, config_json={"model_type": "xlm-roberta"})
    (folder / "sentencepiece_bpe.model").rename(folder / "sentencepiece.bpe.model")
    own = Tokenizer.of_folder(folder)
    reference = transformers.XLMRobertaTokenizer.from_pretrained(folder)
    assert not differing(own, lambda text: reference(text)["input_ids"], strings(3, 1000, ("\u2581",)))
    assert own.token("<mask>") == own.size - 1 and own.token("<pad>") == 1


T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


@pytest.mark.parametrize("extra", [100, 7, None])
def test_t5_reads_words_and_counts_its_sentinels_backwards(tmp_path: Path, extra: int | None) -> None:
    transformers = pytest.importorskip("transformers")
    config: dict[str, Any] = {"tokenizer_class": "T5Tokenizer"}
    if extra is not None:
        config |= {"extra_ids": extra}
        config["additional_special_tokens"] = [f"<extra_id_{number}>" for number in range(extra)]
    files = {"spiece_model": trained("unigram", **T5), "tokenizer_config_json": config}
    folder = write(tmp_path / "m", **files, config_json={"model_type": "switch_transformers"})
    own = Tokenizer.of_folder(folder)
    reference = transformers.T5Tokenizer.from_pretrained(folder)
    texts = [*strings(6, 1500), "The pack <extra_id_0> is<extra_id_1>x.  y", "<extra_id_2>", "</s> <pad> the"]
    assert not differing(own, lambda text: reference(text)["input_ids"], texts)
    assert own.size == len(reference)
    last = (100 if extra is None else extra) - 1
    assert [own.token(f"<extra_id_{number}>") for number in (0, last)] == [own.size - 1, own.size - 1 - last]
    assert own.sentinels() == tuple(range(own.size - 1 - last, own.size))
    for text in texts[:300]:
        tokens = own.encode(text)
        assert own.decode(tokens) == reference.decode(tokens, skip_special_tokens=True)
    stream = own.stream(own.sentinels())
    tokens = own.encode("<extra_id_0> a folder<extra_id_1> is")
    assert "".join(map(stream.add, tokens)) == "<extra_id_0> a folder<extra_id_1> is"


@pytest.mark.parametrize(
    ("kind", "extra", "said"),
    [("bpe", 100, "is a bpe model"), ("unigram", -1, "extra_ids=-1"), ("unigram", 0.5, "0.5")],
)
def test_what_t5_refuses(tmp_path: Path, kind: str, extra: Any, said: str) -> None:
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": extra}
    files = {"spiece_model": trained(kind, **T5), "tokenizer_config_json": config}
    with pytest.raises((UserError, DamagedFileError), match=said):
        Tokenizer.of_folder(write(tmp_path / "m", **files))


def word_pieces() -> str:
    """A vocab.txt trained on the text."""
    import tokenizers

    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    model.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    model.train_from_iterator([*TEXT.splitlines(), TEXT.lower()], trainer)
    vocabulary = model.get_vocab()
    return "".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.__getitem__))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
    ],
    ids=str,
)
def test_word_pieces_equal_the_python_original(tmp_path: Path, config: dict[str, Any]) -> None:
    """The reference is written in plain Python, without the library that ours runs on."""
    original = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")
    said = {"tokenizer_class": "BertTokenizer", **config}
    folder = write(tmp_path / "m", vocab_txt=word_pieces(), tokenizer_config_json=said)
    own = Tokenizer.of_folder(folder)
    reference = original.BertTokenizerLegacy(vocab_file=str(folder / "vocab.txt"), **config)
    assert not differing(own, lambda text: reference(text)["input_ids"], strings(4, 1500))
    again = own._library.encode("a pack", "its plan")
    pair = reference("a pack", "its plan", return_token_type_ids=True)
    assert list(again.ids) == pair["input_ids"] and list(again.type_ids) == pair["token_type_ids"]


def byte_pairs(specials: list[str]) -> tuple[dict[str, int], str]:
    """vocab.json and merges.txt trained on the text."""
    import tokenizers

    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=specials,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    said = json.loads(model.to_str())["model"]
    lines = [" ".join(pair) if isinstance(pair, list) else pair for pair in said["merges"]]
    return said["vocab"], "\n".join(["#version: 0.2", *lines, ""])


FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}


@pytest.mark.parametrize(
    ("kind", "specials", "config"),
    [
        ("GPT2Tokenizer", ["<|endoftext|>"], {}),
        ("GPT2Tokenizer", ["<|endoftext|>"], {"add_prefix_space": True}),
        (
            "GPT2Tokenizer",  # as OPT has it
            ["<s>", "<pad>", "</s>", "<unk>"],
            {"add_bos_token": True, "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"},
        ),
        (
            "RobertaTokenizer",
            ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            {"mask_token": {**FLAGS, "__type": "AddedToken", "content": "<mask>", "lstrip": True}},
        ),
        (
            "Qwen2Tokenizer",
            [],
            {
                "added_tokens_decoder": {
                    str(number): {**FLAGS, "content": text}
                    for number, text in ((600, "<|endoftext|>"), (601, "<|im_start|>"), (602, "<|im_end|>"))
                },
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
            },
        ),
    ],
)
def test_byte_pairs_equal_transformers(
    tmp_path: Path, kind: str, specials: list[str], config: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary, pairs = byte_pairs(specials)
    said = {"tokenizer_class": kind, **config}
    folder = write(tmp_path / "m", vocab_json=vocabulary, merges_txt=pairs, tokenizer_config_json=said)
    own = Tokenizer.of_folder(folder)
    reference = getattr(transformers, kind).from_pretrained(folder)
    special = [one for one in own.table() if own.is_special(own.token(one) or 0)]
    texts = [*strings(5, 1500), *(f"a {one}b {one} \n" for one in special)]
    assert not differing(own, lambda text: reference(text)["input_ids"], texts)
    assert own.size == len(reference)
    for text in texts[:200] if not own.decode(own.encode("a")).startswith(" ") else []:
        composed = unicodedata.normalize("NFC", text) if kind == "Qwen2Tokenizer" else text
        assert own.decode(own.encode(text)) == composed


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "none of the files one is made of"),
        ({"vocab_json": {}}, "only vocab.json"),
        ({"tokenizer_model": b"\x0a"}, "no SentencePiece model"),
        ({"vocab_txt": "a\nb\n"}, "lacks the unk_token"),
        ({"vocab_json": {"a": -1}, "merges_txt": ""}, "has the number -1"),
        ({"vocab_json": {"a": 0}, "merges_txt": "a\n"}, "line 1 .* is no pair"),
        ({"vocab_json": {"a": 0}, "merges_txt": "#version: 1\na a\n"}, "line 2 .* does not hold"),
        (
            {"vocab_json": {"a": 0}, "merges_txt": "", "added_tokens_json": {"<x>": 7}},
            "has the number 7 where the vocabulary leaves 1",
        ),
        (
            {"vocab_txt": "a", "tokenizer_config_json": {"tokenizer_class": "MPNetTokenizer"}},
            "MPNetTokenizer",
        ),
        (
            {"tokenizer_model": b"", "tokenizer_config_json": {"tokenizer_class": "PegasusTokenizer"}},
            "PegasusTokenizer.*AutoTokenizer",
        ),
        (
            {"vocab_txt": "[UNK]\n[CLS]\n[SEP]", "tokenizer_config_json": {"do_lower_case": "yes"}},
            "neither true nor false",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    files = {"config_json": {"model_type": "llama" if "tokenizer_model" in files else "gpt2"}} | files
    if "vocab_txt" in files:
        files["config_json"] = {"model_type": "bert"}
    with pytest.raises((UserError, DamagedFileError), match=said):
        Tokenizer.of_folder(write(tmp_path / "m", **files))


def test_the_command_that_makes_one_makes_one(tmp_path: Path) -> None:
    """A class that is not converted here is refused with a command that works as it stands."""
    import subprocess
    import sys

    pytest.importorskip("transformers")
    said = {"tokenizer_class": "MPNetTokenizer"}
    text = word_pieces().replace("[CLS]", "<s>").replace("[SEP]", "</s>").replace("[PAD]", "<pad>")
    folder = write(
        tmp_path / "a folder", vocab_txt=text.replace("[MASK]", "<mask>"), tokenizer_config_json=said
    )
    with pytest.raises(UserError) as caught:
        Tokenizer.of_folder(folder)
    command = str(caught.value).partition("run: ")[2].replace("python -c", f"{sys.executable} -c", 1)
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Tokenizer.of_folder(folder).encode("the pack")
