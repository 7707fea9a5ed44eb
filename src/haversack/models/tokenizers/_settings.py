"""What the JSON files beside a vocabulary say: class, special and added tokens, what goes around a text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.safetensors import read_json

MOST = 64 * 2**20
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_UNSAID = ("PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", "AutoTokenizer", "")


@dataclass(frozen=True)
class Added:
    """A token that is found in the text itself, before anything else: its text and how it is matched."""

    text: str
    special: bool = True
    normalized: bool = False
    left: bool = False
    right: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class Settings:
    """tokenizer_config.json, special_tokens_map.json and added_tokens.json as one.

    `kind` is the tokenizer's class without `Fast` (empty when none is named); `model_type` that of
    config.json.
    """

    folder: Path
    kind: str
    model_type: str
    values: Mapping[str, Any]
    roles: Mapping[str, Added] = field(default_factory=dict)
    numbered: Mapping[int, Added] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Settings:
        """Read the files that are there; absent ones say nothing. Raises DamagedFileError."""
        values = _table(folder / "tokenizer_config.json")
        config = _table(folder / "config.json")
        said = _table(folder / "special_tokens_map.json") | values
        named = values.get("tokenizer_class") or config.get("tokenizer_class")
        kind = str(named or "").removesuffix("Fast")
        roles: dict[str, Added] = {}
        for role in _ROLES:
            if said.get(role):
                roles[role] = _added(folder, role, said[role], special=True)
        numbered: dict[int, Added] = {}
        for text, number in _table(folder / "added_tokens.json").items():
            special = text in {added.text for added in roles.values()}
            numbered[_number(folder / "added_tokens.json", number)] = Added(
                text, special, normalized=not special
            )
        decoder = values.get("added_tokens_decoder") or {}
        if not isinstance(decoder, dict):
            raise DamagedFileError(folder / "tokenizer_config.json", "added_tokens_decoder is no table")
        for number, value in decoder.items():
            at = _number(folder / "tokenizer_config.json", number)
            numbered[at] = _added(folder, f"added_tokens_decoder {number}", value, special=False)
        model_type = str(config.get("model_type") or "")
        return cls(folder, "" if kind in _UNSAID else kind, model_type, values, roles, numbered)

    def flag(self, name: str, default: bool) -> bool:
        """A field of tokenizer_config.json that is true or false. Raises DamagedFileError for anything
        else."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            path = self.folder / "tokenizer_config.json"
            raise DamagedFileError(path, f"{name}={str(value)[:40]} is neither true nor false", field=name)
        return value

    def role(self, name: str, default: str | None = None) -> str | None:
        """The text of the special token `name` (bos_token, ...)."""
        found = self.roles.get(name)
        return default if found is None else found.text

    def added(self, vocabulary: Mapping[str, int], defaults: Mapping[str, Added]) -> list[dict[str, Any]]:
        """The `added_tokens` of the document, in order of their numbers.

        Tokens of `numbered`, then special tokens (`defaults` by role where none is named) that the vocabulary
        has; those it lacks get the next numbers, as far as a role names them. Raises DamagedFileError for
        numbers that the vocabulary does not leave free.
        """
        found = dict(self.numbered)
        taken = {added.text for added in found.values()}
        roles = {**defaults, **self.roles}
        following = max([*vocabulary.values(), *found], default=-1) + 1
        extra = self.values.get("additional_special_tokens") or self.values.get("extra_special_tokens") or []
        listed = extra.values() if isinstance(extra, dict) else extra if isinstance(extra, list) else []
        more = [_added(self.folder, "additional_special_tokens", value, special=True) for value in listed]
        for added in (*roles.values(), *more):
            if added.text in taken:
                continue
            taken.add(added.text)
            number = vocabulary.get(added.text)
            if number is None:
                if added.text in {one.text for one in defaults.values()} and added not in more:
                    continue  # a default that this vocabulary does without
                number, following = following, following + 1
            found[number] = added
        self._check(found, vocabulary)
        return [
            {
                "id": number,
                "content": added.text,
                "single_word": added.single_word,
                "lstrip": added.left,
                "rstrip": added.right,
                "normalized": added.normalized,
                "special": added.special,
            }
            for number, added in sorted(found.items())
        ]

    def _check(self, found: Mapping[int, Added], vocabulary: Mapping[str, int]) -> None:
        """Numbers of added tokens follow the vocabulary without a gap, or are those it has for the text."""
        after = max(vocabulary.values(), default=-1) + 1
        for number, added in sorted(found.items()):
            own = vocabulary.get(added.text)
            expected = after if own is None else own
            if number != expected:
                raise DamagedFileError(
                    self.folder,
                    f"the added token {added.text[:40]!r} has the number {number} where the vocabulary "
                    f"leaves {expected}",
                    field="tokenizer",
                )
            after += own is None

    def refuse(self, allowed: Iterable[str]) -> UserError:
        """The error for a class whose numbering or rules are not known here."""
        what = self.kind or f"model_type {self.model_type}"
        return UserError(
            f"{self.folder} has no tokenizer.json, and its tokenizer ({what}) is not converted here "
            f"(allowed {', '.join(sorted(allowed))}); run: {conversion_command(self.folder)}",
            field="tokenizer",
            given=what,
        )


def document(
    model: Mapping[str, Any],
    added: list[dict[str, Any]],
    *,
    normalizer: Any,
    pre_tokenizer: Any,
    post_processor: Any,
    decoder: Any,
) -> bytes:
    """The tokenizer.json of its parts."""
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    }
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


Around = Sequence[tuple[str, int]]
"""What a text becomes: (special token or `$A` or `$B` for the texts themselves, segment) in order."""


def template(single: Around, pair: Around, numbers: Mapping[str, int]) -> dict[str, Any] | None:
    """The post-processor that puts special tokens around a text and a pair; None when it puts none."""
    if [name for name, _ in single] == ["$A"]:
        return None

    def steps(said: Around) -> list[dict[str, Any]]:
        return [
            {"Sequence": {"id": name[1:], "type_id": segment}}
            if name in ("$A", "$B")
            else {"SpecialToken": {"id": name, "type_id": segment}}
            for name, segment in said
        ]

    used = {name for name, _ in (*single, *pair)} - {"$A", "$B"}
    return {
        "type": "TemplateProcessing",
        "single": steps(single),
        "pair": steps(pair),
        "special_tokens": {
            name: {"id": name, "ids": [numbers[name]], "tokens": [name]} for name in sorted(used)
        },
    }


def plain_template(
    before: Sequence[str], after: Sequence[str], numbers: Mapping[str, int]
) -> dict[str, Any] | None:
    """`before` and `after` around each text, those of the second in segment 1."""

    def around(text: str, segment: int) -> list[tuple[str, int]]:
        return [(name, segment) for name in (*before, text, *after)]

    return template(around("$A", 0), [*around("$A", 0), *around("$B", 1)], numbers)


def conversion_command(folder: Path) -> str:
    """The command by which transformers writes a tokenizer.json into `folder`."""
    program = (
        "import sys; from transformers import AutoTokenizer; "
        "AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])"
    )
    return f"python -c {shlex.quote(program)} {shlex.quote(str(folder))}"


def read_text(path: Path, most: int = MOST) -> str:
    """A UTF-8 file of at most `most` bytes. Raises UserError, DamagedFileError."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}.", field="tokenizer", given=str(path)
        ) from error
    if len(data) > most:
        raise DamagedFileError(path, f"it is larger than {most >> 20} MiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFileError(path, f"it is not UTF-8 at byte {error.start}") from error


def _table(path: Path) -> dict[str, Any]:
    return read_json(path, MOST) if path.is_file() else {}


def _added(folder: Path, what: str, value: Any, *, special: bool) -> Added:
    """A token given as text or as a table with its flags."""
    if isinstance(value, str):
        return Added(value, special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise DamagedFileError(folder / "tokenizer_config.json", f"{what} names no token")
    return Added(
        value["content"],
        bool(value.get("special", special)),
        bool(value.get("normalized", False)),
        bool(value.get("lstrip", False)),
        bool(value.get("rstrip", False)),
        bool(value.get("single_word", False)),
    )


def _number(path: Path, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if isinstance(value, bool | float) or not 0 <= number < 2**31:
        raise DamagedFileError(path, f"{str(value)[:40]!r} is no number of a token")
    return number
