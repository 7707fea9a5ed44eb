"""The tokenizer that a GGUF file's metadata describes, as a tokenizer.json.

A file may hold the whole tokenizer.json (`tokenizer.huggingface.json`); it is taken. Else `gpt2` is
byte-level merges, `llama` SentencePiece's: pieces with scores, merged best score first, characters
beyond the vocabulary as bytes. What comes out is what llama.cpp makes of the same metadata, so no
normalization that the file does not mention is added.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, TypeVar

from haversack.core.errors import DamagedFileError, UserError, nearest_name
from haversack.formats.gguf import GgufArray, GgufFile
from haversack.models._gguf_pre import PRES, Pre

if TYPE_CHECKING:
    from haversack.models._tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
"""tokenizer.ggml.token_type."""
KINDS = ("gpt2", "llama")
SPACE = "▁"
_PREFIX = "tokenizer.ggml."
TOKENS_MOST = 1 << 22
TOGETHER = 4096
Item = TypeVar("Item")


def tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer of `file`. Raises UserError when it has none, or one of a kind that is not known,
    DamagedFileError when its parts do not fit together."""
    from haversack.models._tokenizer import Tokenizer

    found = Tokenizer.of_bytes(tokenizer_json(file), file.path)
    listed = file.metadata.get(f"{_PREFIX}tokens")
    if (
        isinstance(listed, GgufArray)
        and found.size != listed.count
        and "tokenizer.huggingface.json" not in (file.metadata)
    ):
        raise DamagedFileError(
            file.path,
            f"{listed.count - found.size} of its {listed.count} tokens occur twice",
            field="tokenizer",
        )
    return found


def tokenizer_json(file: GgufFile) -> bytes:
    """A tokenizer.json of the metadata. Raises like `tokenizer`."""
    whole = file.metadata.get("tokenizer.huggingface.json")
    if isinstance(whole, str):
        return whole.encode()
    kind = file.metadata.get(f"{_PREFIX}model")
    if kind is None or kind in ("none", "no_vocab"):
        raise UserError(
            f"{file.path} has no tokenizer; give a file that was converted with its vocabulary.",
            field="tokenizer",
            given=str(file.path),
        )
    if kind not in KINDS:
        nearest = nearest_name(str(kind), KINDS)
        raise UserError(
            f"{file.path}: a tokenizer of kind {str(kind)[:40]!r} is not known "
            f"(known are {', '.join(KINDS)}).",
            field=f"{_PREFIX}model",
            given=kind,
            nearest=nearest,
        )
    tokens = file.metadata.get(f"{_PREFIX}tokens")
    if not isinstance(tokens, GgufArray) or tokens.item != 8 or not 1 <= tokens.count <= TOKENS_MOST:
        raise DamagedFileError(file.path, f"{_PREFIX}tokens is no list of texts", field="tokenizer")
    types = _types(file, tokens.count)
    if kind == "llama":
        return _pieces(file, tokens.count, types)
    return _byte_level(file, types)


def _types(file: GgufFile, count: int) -> Any:
    """token_type i32 [count]; all normal when there is none."""
    import numpy as np

    found = file.numbers(f"{_PREFIX}token_type")
    if found is None:
        return np.full(count, NORMAL, np.int32)
    if len(found) < count:
        raise DamagedFileError(
            file.path, f"it has {len(found)} token types for {count} tokens", field="tokenizer"
        )
    return found[:count]


def _texts(file: GgufFile) -> Iterator[str]:
    """The tokens; an empty one gets a name of its own, as nothing could tell two of them apart."""
    for index, text in enumerate(file.texts(f"{_PREFIX}tokens")):
        yield text or f"[EMPTY_{index}]"


def _some(file: GgufFile, indices: Iterable[int]) -> dict[int, str]:
    """The tokens at `indices`, those beyond the last left out."""
    wanted = dict.fromkeys(sorted(indices))
    found = zip(wanted, file.texts(f"{_PREFIX}tokens", wanted), strict=False)
    return {index: text or f"[EMPTY_{index}]" for index, text in found}


def _vocabulary(file: GgufFile) -> Iterator[str]:
    start = 0
    for few in _by_thousands(_texts(file)):
        yield _json(dict(zip(few, range(start, start + len(few)), strict=True)))
        start += len(few)


def _by_thousands(items: Iterable[Item]) -> Iterator[list[Item]]:
    """`items` in lists: a vocabulary and its merges as so many objects would be most of the memory that a run
    takes."""
    left = iter(items)
    while few := list(islice(left, TOGETHER)):
        yield few


def _json(few: dict[str, int] | list[str] | list[tuple[str, str]]) -> str:
    """JSON of the members of a table or list, without its brackets."""
    return json.dumps(few, ensure_ascii=False, separators=(",", ":"))[1:-1]


def _listed(parts: Iterable[str]) -> bytes:
    """`parts` with commas between, as UTF-8."""
    return b",".join([part.encode() for part in parts])


def _added(file: GgufFile, types: Any) -> list[dict[str, Any]]:
    """Tokens that are found in a text before any merge."""
    import numpy as np

    chosen = np.flatnonzero(np.isin(types, (UNKNOWN, CONTROL, USER))).tolist()
    return [
        {
            "id": index,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": bool(types[index] != USER),
        }
        for index, text in _some(file, chosen).items()
    ]


def _byte_level(file: GgufFile, types: Any) -> bytes:
    pre = _pre(file)
    merges = file.metadata.get(f"{_PREFIX}merges")
    if not isinstance(merges, GgufArray) or merges.item != 8:
        raise DamagedFileError(file.path, f"{_PREFIX}merges is no list of texts", field="tokenizer")
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in pre.patterns
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return _assembled(
        added=_added(file, types),
        normalizer=None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*splits, level]},
        post_processor=_template(file, pre.starts),
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        model={
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.whole,
        },
        vocabulary=_vocabulary(file),
        merges=_merges(file),
    )


def _merges(file: GgufFile) -> list[str]:
    """The merges as the file has them, which is read soonest; as pairs where a token may hold a space.

    Raises DamagedFileError for one that does not name two tokens."""
    parts = []
    for few in _by_thousands(file.texts(f"{_PREFIX}merges")):
        spaces = set(map(str.count, few, repeat(" ")))
        if spaces != {1} or any(text[0] == " " or text[-1] == " " for text in few):
            break
        parts.append(_json(few))
    else:
        return parts
    pairs = (_pair(file, text) for text in file.texts(f"{_PREFIX}merges"))
    return [_json(few) for few in _by_thousands(pairs)]


def _pair(file: GgufFile, text: str) -> tuple[str, str]:
    first, _, second = text[1:].partition(" ")
    if not second:
        raise DamagedFileError(
            file.path, f"the merge {text[:40]!r} does not name two tokens", field="tokenizer"
        )
    return text[0] + first, second


def _pre(file: GgufFile) -> Pre:
    name = file.metadata.get(f"{_PREFIX}pre", "default")
    found = PRES.get(name) if isinstance(name, str) else None
    if found is None:
        nearest = nearest_name(str(name), PRES)
        raise UserError(
            f"{file.path}: {_PREFIX}pre={str(name)[:40]!r} is not known "
            f"(known are {', '.join(sorted(PRES))}); "
            "give the original checkpoint, whose tokenizer.json says how it cuts a text.",
            field=f"{_PREFIX}pre",
            given=name,
            nearest=nearest,
        )
    return found


def _pieces(file: GgufFile, count: int, types: Any) -> bytes:
    import numpy as np

    scores = file.numbers(f"{_PREFIX}scores")
    if scores is None or len(scores) < count or not np.isfinite(scores[:count]).all():
        raise DamagedFileError(
            file.path, f"{_PREFIX}scores does not give a number for every token", field="tokenizer"
        )
    table = {text: index for index, text in enumerate(_texts(file))}
    texts = list(table)
    unknown = next((texts[i] for i in np.flatnonzero(types == UNKNOWN) if i < len(texts)), None)
    prefix = file.metadata.get(f"{_PREFIX}add_space_prefix", True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = [{"type": "Prepend", "prepend": SPACE}, spaces] if prefix else [spaces]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _assembled(
        added=_added(file, types),
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer=None,
        post_processor=_template(file, True),
        decoder={"type": "Sequence", "decoders": decoders},
        model={
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
        },
        vocabulary=_vocabulary(file),
        merges=(_json(few) for few in _by_thousands(merges_of(table, scores))),
    )


def merges_of(table: dict[str, int], scores: Any) -> Iterator[tuple[str, str]]:
    """The pairs of pieces that make a piece, best score first: the ranks that merging by score follows.

    Pairs of one piece share its score; of these, as of pieces with equal scores, the earlier token comes
    first, where merging by score would take the leftmost in the text.
    """
    import numpy as np

    texts = list(table)
    order = np.argsort(-np.asarray(scores[: len(texts)], np.float64), kind="stable")
    for index in order.tolist():
        text = texts[index]
        for cut in range(1, len(text)):
            if text[:cut] in table and text[cut:] in table:
                yield text[:cut], text[cut:]


def _template(file: GgufFile, starts: bool) -> dict[str, Any] | None:
    """Start and end tokens around a text, where the file wants them."""
    marks: dict[str, tuple[int, str]] = {}
    for which, default in (("bos", starts), ("eos", False)):
        wanted = file.metadata.get(f"{_PREFIX}add_{which}_token", default)
        token = file.metadata.get(
            f"{_PREFIX}{which}_token_id", 1 if which == "bos" and _is_llama(file) else None
        )
        if wanted and isinstance(token, int):
            text = _some(file, (token,)).get(token)
            if text is None:
                raise DamagedFileError(
                    file.path, f"{_PREFIX}{which}_token_id is {token}, which is no token", field="tokenizer"
                )
            marks[which] = token, text
    if not marks:
        return None

    def around(*sequences: tuple[str, int]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for name, number in sequences:
            if "bos" in marks:
                found.append({"SpecialToken": {"id": marks["bos"][1], "type_id": number}})
            found.append({"Sequence": {"id": name, "type_id": number}})
            if "eos" in marks:
                found.append({"SpecialToken": {"id": marks["eos"][1], "type_id": number}})
        return found

    return {
        "type": "TemplateProcessing",
        "single": around(("A", 0)),
        "pair": around(("A", 0), ("B", 1)),
        "special_tokens": {
            text: {"id": text, "ids": [token], "tokens": [text]} for token, text in marks.values()
        },
    }


def _is_llama(file: GgufFile) -> bool:
    return bool(file.metadata.get(f"{_PREFIX}model") == "llama")


def _assembled(
    *,
    added: list[dict[str, Any]],
    normalizer: Any,
    pre_tokenizer: Any,
    post_processor: Any,
    decoder: Any,
    model: dict[str, Any],
    vocabulary: Iterable[str],
    merges: Iterable[str],
) -> bytes:
    """The JSON, its two long tables item by item."""
    head = json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": post_processor,
            "decoder": decoder,
        }
    )
    inner = json.dumps(model)
    opening = f'{head[:-1]},"model":{inner[:-1]},"vocab":{{'.encode()
    return b"".join((opening, _listed(vocabulary), b'},"merges":[', _listed(merges), b"]}}"))
