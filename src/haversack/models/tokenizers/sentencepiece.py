"""SentencePiece models as tokenizer.json (Kudo, 2018: unigram; Sennrich et al., 2016: BPE).

The steps are SentencePiece's own, in its order: characters are replaced by the model's table, spaces squeezed
where it says so, a space put before the text, spaces written as U+2581; pieces that the user defined stand
alone; what no piece covers becomes bytes or the unknown token. BPE joins the pair whose piece has the best
score. The Llama, Gemma, XLM-R and T5 kinds differ in numbering and in what goes around a text. T5 numbers
its sentinels backwards behind the pieces and, as the hub's tokenizer does, reads words and not the spaces
between them.

Limits: a piece that two pairs of the same length could join overlapping (`aba` of `ab a` and `a ba`) may be
joined elsewhere than SentencePiece would; texts that spell a byte token (`<0x41>`) are not told apart.
"""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.sentencepiece import Piece, SentencePieceModel
from haversack.models.tokenizers._settings import (
    Added,
    Settings,
    conversion_command,
    document,
    plain_template,
    template,
)

SPACE = "\u2581"
LLAMA = ("LlamaTokenizer", "CodeLlamaTokenizer")
GEMMA = ("GemmaTokenizer",)
XLM_ROBERTA = ("XLMRobertaTokenizer",)
T5 = ("T5Tokenizer",)
KINDS = (*LLAMA, *GEMMA, *XLM_ROBERTA, *T5)
SENTINELS, MOST_SENTINELS = 100, 1 << 16
_OF_MODEL_TYPE = {
    "llama": "LlamaTokenizer",
    "mistral": "LlamaTokenizer",
    "phi3": "LlamaTokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "t5": "T5Tokenizer",
    "mt5": "T5Tokenizer",
    "switch_transformers": "T5Tokenizer",
}

_METASPACE = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}


def convert(path: Path, settings: Settings) -> bytes:
    """The tokenizer.json of the model `path`. Raises UserError for other classes and kinds of model,
    DamagedFileError for files that do not hold."""
    kind = settings.kind or _OF_MODEL_TYPE.get(settings.model_type, "")
    if kind not in KINDS:
        raise settings.refuse(KINDS)
    model = SentencePieceModel.open(path)
    if model.kind not in ("unigram", "bpe") or model.suffix or (kind in T5 and model.kind != "unigram"):
        what = "has spaces after words" if model.suffix else f"is a {model.kind} model"
        raise UserError(
            f"{path} {what}, which is not converted (allowed unigram, bpe with spaces before words); run: "
            f"{conversion_command(path.parent)}",
            field="tokenizer",
            given=model.kind,
            nearest="unigram",
        )
    pieces, unknown = list(model.pieces), model.unknown
    if kind in XLM_ROBERTA:
        pieces, unknown = _shifted(pieces), 3
    if kind in T5:
        pieces += [Piece(text, 0.0, "control") for text in sentinels(settings)]
    repeated = len(pieces) - len({piece.text for piece in pieces})
    if repeated:
        raise DamagedFileError(path, f"{repeated} of its pieces occur twice", field="tokenizer")
    return build(model, pieces, unknown, kind, settings)


def build(
    model: SentencePieceModel, pieces: list[Piece], unknown: int, kind: str, settings: Settings
) -> bytes:
    """The document of `pieces`, numbered as they stand."""
    vocabulary = {piece.text: number for number, piece in enumerate(pieces)}
    own = {
        number: Added(piece.text)
        for number, piece in enumerate(pieces)
        if piece.kind in ("control", "unknown")
    }
    settings = replace(settings, numbered=own | dict(settings.numbered))
    renamed = {number: added.text for number, added in settings.numbered.items() if number < len(pieces)}
    for number, text in renamed.items():  # placeholders that the settings name anew
        if pieces[number].text != text and text not in vocabulary:
            del vocabulary[pieces[number].text]
            vocabulary[text] = number
            pieces[number] = Piece(text, pieces[number].score, pieces[number].kind)
    defaults = {"bos_token": Added("<s>"), "eos_token": Added("</s>"), "unk_token": Added("<unk>")}
    if kind in XLM_ROBERTA:
        defaults |= {"pad_token": Added("<pad>"), "mask_token": Added("<mask>", left=True)}
    if kind in T5:
        defaults = {"eos_token": Added("</s>"), "unk_token": Added("<unk>"), "pad_token": Added("<pad>")}
    if kind in GEMMA:
        defaults |= {"bos_token": Added("<bos>"), "eos_token": Added("<eos>"), "pad_token": Added("<pad>")}
    added = settings.added(vocabulary, defaults)
    numbers = vocabulary | {one["content"]: one["id"] for one in added}
    if kind in T5:
        return document(
            _unigram(pieces, unknown, model.byte_fallback),
            added,
            normalizer=_characters(model),
            pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, _METASPACE]},
            post_processor=_around(kind, settings, defaults, numbers),
            decoder=_METASPACE,
        )
    user = [piece.text for piece in pieces if piece.kind == "user-defined" and model.kind == "bpe"]
    first = kind not in XLM_ROBERTA and not settings.flag("legacy", True)
    prefix = settings.flag("add_prefix_space", model.dummy_prefix) and model.dummy_prefix
    return document(
        _unigram(pieces, unknown, model.byte_fallback)
        if model.kind == "unigram"
        else _bpe(pieces, vocabulary, unknown, model.byte_fallback, bool(user)),
        added,
        normalizer=_normalizer(model, prefix and not first),
        pre_tokenizer=_words(user, prefix and first),
        post_processor=_around(kind, settings, defaults, numbers),
        decoder=_decoder(prefix),
    )


def sentinels(settings: Settings) -> list[str]:
    """The tokens that stand for spans, as they follow the pieces: as many as `extra_ids` says, the last
    first. Raises DamagedFileError for a number that cannot be.
    """
    count = settings.values.get("extra_ids")
    count = SENTINELS if count is None else count
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MOST_SENTINELS:
        raise DamagedFileError(
            settings.folder / "tokenizer_config.json", f"extra_ids={str(count)[:40]} is no number of tokens"
        )
    return [f"<extra_id_{number}>" for number in range(count - 1, -1, -1)]


def _shifted(pieces: list[Piece]) -> list[Piece]:
    """XLM-R's numbering: its own four tokens, the pieces from the fourth on, the mask."""
    own = [Piece(text, 0.0, "control") for text in ("<s>", "<pad>", "</s>")]
    return [*own, Piece("<unk>", 0.0, "unknown"), *pieces[3:], Piece("<mask>", 0.0, "control")]


def _unigram(pieces: list[Piece], unknown: int, fallback: bool) -> dict[str, Any]:
    """User-defined pieces score -0.1, whatever their length: so SentencePiece prefers them to all others."""

    def score(piece: Piece) -> float:
        return -0.1 if piece.kind == "user-defined" else piece.score

    return {
        "type": "Unigram",
        "unk_id": unknown,
        "vocab": [(piece.text, score(piece)) for piece in pieces],
        "byte_fallback": fallback,
    }


def _bpe(
    pieces: list[Piece], vocabulary: dict[str, int], unknown: int, fallback: bool, user: bool
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": pieces[unknown].text,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": fallback,
        "ignore_merges": user,  # what the user defined has no pairs that join to it
        "vocab": vocabulary,
        "merges": merges(pieces),
    }


def merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Every pair of normal pieces that joins to a normal piece, the best score first."""
    score = {
        piece.text: (-piece.score, number) for number, piece in enumerate(pieces) if piece.kind == "normal"
    }
    ranked = []
    for text, rank in score.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in score and right in score:
                ranked.append((*rank, cut, left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _characters(model: SentencePieceModel) -> dict[str, Any] | None:
    """The model's own table of characters, where it has one."""
    if not model.characters:
        return None
    return {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(model.characters).decode(),
    }


def _normalizer(model: SentencePieceModel, prefix: bool) -> dict[str, Any] | None:
    characters = _characters(model)
    steps: list[dict[str, Any]] = [] if characters is None else [characters]
    if model.squeeze:
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if prefix:
        steps.append({"type": "Prepend", "prepend": SPACE if model.escape else " "})
    if model.escape:
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _words(user: list[str], first: bool) -> dict[str, Any] | None:
    """With `first` (tokenizers that are not `legacy`) only the text's own beginning gets a space, not what
    follows an added token."""
    steps: list[dict[str, Any]] = []
    if first:
        steps.append({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False})
    if user:
        longest = sorted(user, key=lambda text: (-len(text), text))
        pattern = "|".join(re.escape(text) for text in longest)
        steps.append(
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        )
    return {"type": "Sequence", "pretokenizers": steps} if steps else None


def _decoder(prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _around(
    kind: str, settings: Settings, defaults: dict[str, Added], numbers: dict[str, int]
) -> dict[str, Any] | None:
    def token(role: str) -> str:
        text = settings.role(role, defaults[role].text)
        if text is None or text not in numbers:
            raise DamagedFileError(settings.folder, f"its vocabulary lacks the {role} {text!r}")
        return text

    if kind in XLM_ROBERTA:
        start, end = (token("bos_token"), 0), (token("eos_token"), 0)
        single = [start, ("$A", 0), end]
        return template(single, [*single, end, ("$B", 0), end], numbers)
    if kind in T5:
        end = (token("eos_token"), 0)
        return template([("$A", 0), end], [("$A", 0), end, ("$B", 0), end], numbers)
    before = [token("bos_token")] if settings.flag("add_bos_token", True) else []
    after = [token("eos_token")] if settings.flag("add_eos_token", False) else []
    return plain_template(before, after, numbers)
