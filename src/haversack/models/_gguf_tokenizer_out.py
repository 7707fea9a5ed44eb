"""A tokenizer.json as the metadata of a GGUF file, and what of it GGUF cannot say.

What GGUF has no words for (a pattern that cuts words, pieces that are not merged by score) is not bent: the
nearest is named for other programs, the whole tokenizer.json goes into the key that the format has for it,
`tokenizer.huggingface.json`, and the difference is told.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from haversack.core.errors import DamagedFileError, UserError
from haversack.models._gguf_pre import PRES
from haversack.models._gguf_tokenizer import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER, merges_of

Entries = dict[str, tuple[str, Any]]

_SPELLINGS = {
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)": "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
}
_PREFERRED = ("llama-bpe", "qwen2", "gpt-2", "smollm", "gpt-4o", "tekken", "deepseek-v3")
_LEVEL_PATTERN = PRES["gpt-2"].patterns[0]


@dataclass
class Written:
    """The entries, and what they change for programs that read them."""

    entries: Entries
    changes: list[str] = field(default_factory=list)


def tokenizer_entries(
    data: bytes, path: object, vocabulary: int, start: int | None, ends: Sequence[int]
) -> Written:
    """The metadata of the tokenizer.json `data` for a model of `vocabulary` tokens; `start` and `ends` are
    the model's tokens that begin and end a text.

    Raises UserError for a tokenizer that merges nothing (GGUF's are of merges), DamagedFileError for what is
    no tokenizer.json.
    """
    try:
        record = json.loads(data)
        model = record["model"]
        kind, table = model.get("type"), model["vocab"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFileError(path, "it is no tokenizer.json", field="tokenizer") from error
    if kind not in (None, "BPE") or not isinstance(table, dict) or "merges" not in model:
        raise UserError(
            f"{path} is a tokenizer of the type {kind}; GGUF's decoders have tokenizers of merges (BPE).",
            field="tokenizer",
            given=kind,
            nearest="BPE",
        )
    texts, types = _tokens(record, table, vocabulary)
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    level = any(step.get("type") == "ByteLevel" for step in _steps(record.get("decoder"), "decoders"))
    written = Written({})
    if level:
        written.entries["tokenizer.ggml.model"] = ("string", "gpt2")
        named = _pre_name(record, bool(model.get("ignore_merges")))
        written.entries["tokenizer.ggml.pre"] = ("string", named or "gpt-2")
        if named is None:
            written.changes.append(
                "tokenizer: GGUF has no name for how it cuts a text into words; gpt-2 is named, so other "
                "programs may cut a text otherwise (the whole tokenizer.json is in the file)"
            )
        written.entries["tokenizer.ggml.merges"] = ("[string]", [" ".join(pair) for pair in merges])
    elif model.get("byte_fallback"):
        _scored(written, record, texts, types, merges)
    else:
        raise UserError(
            f"{path} merges characters without bytes to fall back on, which GGUF has no kind for.",
            field="tokenizer",
            given=str(path),
        )
    written.entries["tokenizer.ggml.tokens"] = ("[string]", texts)
    written.entries["tokenizer.ggml.token_type"] = ("[i32]", types)
    written.entries.update(_marks(record, texts, start, ends))
    if written.changes:
        written.entries["tokenizer.huggingface.json"] = ("string", data.decode("utf-8"))
    return written


def _tokens(record: Any, table: dict[str, int], vocabulary: int) -> tuple[list[str], list[int]]:
    """Texts and types by number; numbers without a token get one that no text gives."""
    texts = [f"[PAD{index}]" for index in range(vocabulary)]
    types = [UNUSED] * vocabulary
    unknown = record["model"].get("unk_token")
    for text, index in table.items():
        if 0 <= index < vocabulary:
            texts[index], types[index] = text, NORMAL
            if record["model"].get("byte_fallback") and len(text) == 6 and text.startswith("<0x"):
                types[index] = BYTE
    for token in record.get("added_tokens") or []:
        index, text = token["id"], token["content"]
        if 0 <= index < vocabulary:
            texts[index], types[index] = text, CONTROL if token.get("special") else USER
            if text == unknown:
                types[index] = UNKNOWN
    return texts, types


def _steps(part: Any, name: str) -> list[dict[str, Any]]:
    """The steps of a sequence, or the one step there is."""
    if not isinstance(part, dict):
        return []
    found = part.get(name, [part])
    return [step for step in found if isinstance(step, dict)]


def _pre_name(record: Any, whole: bool) -> str | None:
    """The name of `tokenizer.ggml.pre` that cuts as this tokenizer does; None when there is none."""
    patterns: list[str] = []
    for step in _steps(record.get("pre_tokenizer"), "pretokenizers"):
        kind = step.get("type")
        if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            pattern = step.get("pattern") or {}
            text = pattern.get("Regex")
            if not isinstance(text, str):
                return None
            for one, other in _SPELLINGS.items():
                text = text.replace(one, other)
            patterns.append(text)
        elif kind == "Digits" and step.get("individual_digits"):
            patterns.append(r"\p{N}")
        elif kind == "ByteLevel":
            if step.get("add_prefix_space"):
                return None
            if step.get("use_regex", True):
                patterns.append(_LEVEL_PATTERN)
        else:
            return None
    normalizers = {step.get("type") for step in _steps(record.get("normalizer"), "normalizers")}
    if normalizers - {"NFC"}:
        return None
    for name in (*_PREFERRED, *PRES):
        if list(PRES[name].patterns) == patterns and PRES[name].whole == whole:
            return name
    return None


def _scored(
    written: Written, record: Any, texts: list[str], types: list[int], merges: list[tuple[str, ...]]
) -> None:
    """Pieces with scores: a piece's is the rank of the first merge that makes it, negated."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    least = -float(len(merges) + 1)
    scores = [
        0.0 if types[index] == BYTE else -float(ranks[text]) if text in ranks else least
        for index, text in enumerate(texts)
    ]
    entries = written.entries
    entries["tokenizer.ggml.model"] = ("string", "llama")
    entries["tokenizer.ggml.pre"] = ("string", "default")
    entries["tokenizer.ggml.scores"] = ("[f32]", scores)
    steps = _steps(record.get("normalizer"), "normalizers")
    cutters = _steps(record.get("pre_tokenizer"), "pretokenizers")
    prefix = any(step.get("type") == "Prepend" for step in steps) or any(
        step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never"
        for step in cutters
    )
    entries["tokenizer.ggml.add_space_prefix"] = ("bool", prefix)
    known = {"Prepend", "Replace"}
    plain = all(
        step.get("type") in known
        and step.get("prepend", SPACE) == SPACE
        and step.get("content", SPACE) == SPACE
        for step in steps
    ) and all(step.get("type") == "Metaspace" and step.get("replacement", SPACE) == SPACE for step in cutters)
    table = {text: index for index, text in enumerate(texts)}
    used = {pair for pair in merges if "".join(pair) in table}
    same = used == set(merges_of(table, scores))
    if not plain or not same:
        written.changes.append(
            "tokenizer: it normalizes or merges in a way that scores cannot say, so other programs may cut a "
            "text otherwise (the whole tokenizer.json is in the file)"
        )


def _marks(record: Any, texts: list[str], start: int | None, ends: Sequence[int]) -> Entries:
    """Tokens that begin and end a text, and whether they are put around it."""
    before: list[str] = []
    after: list[str] = []
    for step in _steps(record.get("post_processor"), "processors"):
        if step.get("type") != "TemplateProcessing":
            continue
        seen = False
        for item in step.get("single") or []:
            if "Sequence" in item:
                seen = True
            elif "SpecialToken" in item:
                (after if seen else before).append(item["SpecialToken"]["id"])
    numbers = {text: index for index, text in enumerate(texts)}
    first = numbers.get(before[0], start) if before else start
    found: Entries = {
        "tokenizer.ggml.add_bos_token": ("bool", bool(before)),
        "tokenizer.ggml.add_eos_token": ("bool", bool(after)),
    }
    if first is not None:
        found["tokenizer.ggml.bos_token_id"] = ("u32", first)
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    last = [numbers[after[0]]] if after and after[0] in numbers else []
    for key, end in zip(keys, dict.fromkeys([*last, *ends]), strict=False):
        found[key] = ("u32", end)
    unknown = record["model"].get("unk_token")
    if isinstance(unknown, str) and unknown in numbers:
        found["tokenizer.ggml.unknown_token_id"] = ("u32", numbers[unknown])
    return found
