"""Byte-level BPE from `vocab.json` and `merges.txt` (Radford et al., 2019): GPT-2, OPT, Phi-2, RoBERTa, Qwen.

The bytes of a text stand as printable characters; a regular expression cuts it into words, and in each word
the pair that comes first in merges.txt is joined until none is left. The kinds differ in that expression, in
normalization and in what goes around a text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from haversack.core.errors import DamagedFileError
from haversack.formats.safetensors import read_json
from haversack.models.tokenizers._settings import (
    MOST,
    Added,
    Settings,
    document,
    plain_template,
    read_text,
    template,
)

GPT2 = ("GPT2Tokenizer", "CodeGenTokenizer")
ROBERTA = ("RobertaTokenizer", "LongformerTokenizer")
QWEN2 = ("Qwen2Tokenizer",)
_OF_MODEL_TYPE = {
    "gpt2": "GPT2Tokenizer",
    "opt": "GPT2Tokenizer",
    "gpt_neo": "GPT2Tokenizer",
    "phi": "CodeGenTokenizer",
    "codegen": "CodeGenTokenizer",
    "roberta": "RobertaTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
}
# Qwen's words: contractions, a word with the sign before it, single digits, signs, line ends, spaces.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def convert(path: Path, settings: Settings) -> bytes:
    """The tokenizer.json of the vocabulary `path` and the merges.txt beside it.

    Raises UserError for other classes, DamagedFileError for files that do not hold.
    """
    kind = settings.kind or _OF_MODEL_TYPE.get(settings.model_type, "")
    if kind not in (*GPT2, *ROBERTA, *QWEN2):
        raise settings.refuse((*GPT2, *ROBERTA, *QWEN2))
    vocabulary = read_vocabulary(path)
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocabulary,
        "merges": read_merges(path.with_name("merges.txt"), vocabulary),
    }
    space = settings.flag("add_prefix_space", False)
    defaults = _defaults(kind)
    added = settings.added(vocabulary, defaults)
    numbers = vocabulary | {one["content"]: one["id"] for one in added}
    words: dict[str, Any] = {
        "type": "ByteLevel",
        "add_prefix_space": space,
        "trim_offsets": True,
        "use_regex": True,
    }
    normalizer = None
    if kind in QWEN2:
        normalizer = {"type": "NFC"}
        cut = {"type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": False}
        words = {"type": "Sequence", "pretokenizers": [cut, words | {"use_regex": False}]}
    return document(
        model,
        added,
        normalizer=normalizer,
        pre_tokenizer=words,
        post_processor=_around(path, kind, settings, defaults, numbers),
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    )


def _defaults(kind: str) -> dict[str, Added]:
    if kind in ROBERTA:
        plain = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"}
        plain |= {"unk_token": "<unk>", "pad_token": "<pad>"}
        return {role: Added(text) for role, text in plain.items()} | {
            "mask_token": Added("<mask>", left=True)
        }
    return {role: Added("<|endoftext|>") for role in ("unk_token", "bos_token", "eos_token")}


def _around(
    path: Path, kind: str, settings: Settings, defaults: dict[str, Added], numbers: dict[str, int]
) -> dict[str, Any] | None:
    """RoBERTa's texts stand between start and end; others get what add_bos_token and add_eos_token say."""

    def token(role: str) -> str:
        text = settings.role(role, defaults[role].text if role in defaults else None)
        if text is None or text not in numbers:
            raise DamagedFileError(path, f"it lacks the {role} {text!r}", field="tokenizer")
        return text

    if kind in ROBERTA:
        first, last = (token("cls_token"), 0), (token("sep_token"), 0)
        single = [first, ("$A", 0), last]
        return template(single, [*single, last, ("$B", 0), last], numbers)
    before = [token("bos_token")] if settings.flag("add_bos_token", False) else []
    after = [token("eos_token")] if settings.flag("add_eos_token", False) else []
    return plain_template(before, after, numbers)


def read_vocabulary(path: Path) -> dict[str, int]:
    """vocab.json: token -> number. Raises DamagedFileError when a number is none."""
    values = read_json(path, MOST)
    for text, number in values.items():
        if type(number) is not int or not 0 <= number < 2**31:
            raise DamagedFileError(path, f"the token {text[:40]!r} has the number {str(number)[:40]}")
    return values


def read_merges(path: Path, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs of merges.txt in order. Raises DamagedFileError, naming the line, for what is no pair or
    joins to no token."""
    pairs = []
    for number, line in enumerate(read_text(path).replace("\r\n", "\n").split("\n"), 1):
        if not line or line.startswith("#version"):
            continue
        left, space, right = line.partition(" ")
        if not space or not left or not right or " " in right:
            raise DamagedFileError(path, f"line {number} ({line[:40]!r}) is no pair", field="tokenizer")
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            what = f"line {number} ({line[:40]!r}) joins what vocab.json does not hold"
            raise DamagedFileError(path, what, field="tokenizer")
        pairs.append((left, right))
    return pairs
