"""Text to tokens and back: the tokenizers library behind one class, and a detokenizer that is exact to the
byte.

Tokens of byte-level and of byte-fallback vocabularies are turned into bytes one by one, and text is given out
as soon as its bytes are whole characters: what was printed never changes, and the pieces joined are the text.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from haversack.core.errors import DamagedFileError, UserError

LARGEST = 256 * 2**20
REPLACEMENT = "\ufffd"
SENTINEL = re.compile(r"<extra_id_\d+>")


@cache
def byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (Radford et al., 2019): printable
    ones
    stand for themselves, the others for the characters from 256 on."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    table = {chr(byte): byte for byte in shown}
    hidden = (byte for byte in range(256) if byte not in set(shown))
    return table | {chr(256 + index): byte for index, byte in enumerate(hidden)}


class Tokenizer:
    """A tokenizer.json. Made by `Tokenizer.open`; the library is imported then, not before."""

    def __init__(self, library: Any, path: object) -> None:
        self.path = path
        self._library = library
        self._special = {
            token for token, added in library.get_added_tokens_decoder().items() if added.special
        }
        self._added = {token: added.content for token, added in library.get_added_tokens_decoder().items()}
        self._decoder = _decoder_kind(library)

    @classmethod
    def open(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of the file `path`; where a checkpoint folder lacks its tokenizer.json, one made in
        memory of the older files there (models/tokenizers/).

        Raises UserError when it cannot be read or made, DamagedFileError when it is no tokenizer.json.
        """
        file = Path(path)
        if file.name == "tokenizer.json" and not file.exists():
            from haversack.models.tokenizers import can_be_made, tokenizer_json

            if can_be_made(file.parent):
                return cls.of_bytes(tokenizer_json(file.parent), file.parent)
        try:
            if file.stat().st_size > LARGEST:
                raise DamagedFileError(file, f"it is larger than {LARGEST >> 20} MiB")
            data = file.read_bytes()
        except OSError as error:
            raise UserError(
                f"the tokenizer {file} cannot be read: {error.strerror}.", field="tokenizer", given=str(file)
            ) from error
        return cls.of_bytes(data, file)

    @classmethod
    def of_folder(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a checkpoint folder. Raises as `open`; the sentence for a folder without one says
        what makes one."""
        from haversack.models.tokenizers import tokenizer_json

        if not (folder / "tokenizer.json").exists():
            return cls.of_bytes(tokenizer_json(folder), folder)
        return cls.open(folder / "tokenizer.json")

    @classmethod
    def of_bytes(cls, data: bytes, path: object = "tokenizer.json") -> Tokenizer:
        """The tokenizer of a tokenizer.json's bytes. Raises DamagedFileError when it is none."""
        import tokenizers

        try:
            library = tokenizers.Tokenizer.from_buffer(data)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic inside the library is no Exception
            raise DamagedFileError(
                path, f"it is no tokenizer ({_short(error)})", field="tokenizer"
            ) from error
        library.no_truncation()
        library.no_padding()
        return cls(library, path)

    @property
    def size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._library.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of `text`; with `special`, those that the tokenizer's template puts around a text as
        well.
        """
        try:
            return list(self._library.encode(text, add_special_tokens=special).ids)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic inside the library is no Exception
            raise UserError(
                f"the text cannot be tokenized ({_short(error)}).", field="prompt", given=text[:80]
            ) from error

    def encode_types(
        self, text: str, pair: str | None = None, longest: int | None = None
    ) -> tuple[list[int], list[int], int]:
        """Tokens of a text, or of a pair of texts, with the template's special ones; the type of each token
        (0, or 1 for the second text); how many tokens there were before `longest` cut them. What is cut is
        the end of the text (of the longer of two), never a special token.
        """
        try:
            parts = [
                self._library.encode(part, add_special_tokens=False)
                for part in (text, pair)
                if part is not None
            ]
            special = int(self._library.num_special_tokens_to_add(pair is not None))
            sizes = [len(part.ids) for part in parts]
            whole = sum(sizes) + special
            if longest is not None and whole > longest:
                while sum(sizes) + special > longest and max(sizes) > 0:
                    sizes[sizes.index(max(sizes))] -= 1
                for part, size in zip(parts, sizes, strict=True):
                    part.truncate(size)
            found = self._library.post_process(*parts, add_special_tokens=True)
            return list(found.ids), list(found.type_ids), whole
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic inside the library is no Exception
            raise UserError(
                f"the text cannot be tokenized ({_short(error)}).", field="prompt", given=text[:80]
            ) from error

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; special tokens give none, bytes that are no UTF-8 give U+FFFD."""
        stream = self.stream()
        return "".join([*(stream.add(token) for token in tokens), stream.finish()])

    def token(self, text: str) -> int | None:
        """The number of the token written `text`, None when there is none."""
        found = self._library.token_to_id(text)
        return None if found is None else int(found)

    def written(self, token: int) -> str:
        """The token as the vocabulary writes it."""
        found = self._library.id_to_token(token)
        return "" if found is None else str(found)

    def table(self) -> dict[str, int]:
        """Every token's text and number."""
        return dict(self._library.get_vocab(with_added_tokens=True))

    def is_special(self, token: int) -> bool:
        """True for tokens that stand for no text (end of text, roles of a chat)."""
        return token in self._special

    def sentinels(self) -> tuple[int, ...]:
        """The tokens that stand for spans of a text that are to be filled in: <extra_id_0> and so on."""
        return tuple(token for token, text in self._added.items() if SENTINEL.fullmatch(text))

    def bytes_of(self, token: int) -> bytes | None:
        """The bytes of one token; None when the vocabulary does not tell them apart from their context."""
        if token in self._special:
            return b""
        if token in self._added:
            return str(self._added[token]).encode()
        found = self._library.id_to_token(token)
        if found is None:
            return b""
        text = str(found)
        if self._decoder == "bytes":
            table = byte_of_character()
            known = all(character in table for character in text)
            return bytes(table[c] for c in text) if known else text.encode()
        byte = self._decoder == "fallback" and len(text) == 6
        if byte and text.startswith("<0x") and text.endswith(">"):
            return bytes((int(text[3:5], 16),))
        if self._decoder in ("fallback", "pieces"):
            return text.replace("\u2581", " ").encode()
        return None

    def stream(self, shown: Sequence[int] = ()) -> Detokenizer:
        """A detokenizer for one text, fed token by token; special tokens in `shown` give their text."""
        return Detokenizer(self, shown)


class Detokenizer:
    """Gives the text of tokens as soon as it is certain: a character whose bytes span tokens waits for the
    last.
    """

    def __init__(self, tokenizer: Tokenizer, shown: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._shown = {token: str(tokenizer._added[token]).encode() for token in shown}
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        spaced = tokenizer._decoder in ("fallback", "pieces")
        self._strip = spaced and _strips_first_space(tokenizer._library)
        self._exact = tokenizer._decoder is not None
        self._tokens: list[int] = []
        self._from = self._given = 0

    def add(self, token: int) -> str:
        """The text that `token` makes certain, possibly empty."""
        if self._exact:
            data = self._shown.get(token) or self._tokenizer.bytes_of(token) or b""
            if self._strip and data:
                data, self._strip = data.removeprefix(b" "), False
            return self._utf8.decode(data)
        self._tokens.append(token)
        before, now = self._window()
        if now.endswith(REPLACEMENT) or len(now) <= len(before):
            return ""
        self._from, self._given = self._given, len(self._tokens)
        return now[len(before) :]

    def finish(self) -> str:
        """The rest: bytes that never became a character give U+FFFD."""
        if self._exact:
            return self._utf8.decode(b"", final=True)
        before, now = self._window()
        self._from = self._given = len(self._tokens)
        return now[len(before) :]

    def _window(self) -> tuple[str, str]:
        """Text of the tokens since `_from`, without and with those not yet given out."""
        decode: Callable[[list[int]], str] = self._tokenizer._library.decode
        return decode(self._tokens[self._from : self._given]), decode(self._tokens[self._from :])


def _decoder_kind(library: Any) -> str | None:
    """`bytes` for a byte-level vocabulary, `fallback` for one with byte tokens, `pieces` for one without
    whose pieces tell their spaces, None for any other.
    """
    said = json.loads(library.decoder.__getstate__()) if library.decoder is not None else {}
    steps = said.get("decoders", [said]) if isinstance(said, dict) else []
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return "bytes"
    if kinds == ["Metaspace"] and steps[0].get("replacement") == "\u2581":
        return "pieces"
    if "ByteFallback" in kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        replaced = [step for step in steps if step.get("type") == "Replace"]
        if all(s.get("pattern") == {"String": "\u2581"} and s.get("content") == " " for s in replaced):
            return "fallback"
    return None


def _strips_first_space(library: Any) -> bool:
    said = json.loads(library.decoder.__getstate__())
    steps = said.get("decoders", [])
    if said.get("type") == "Metaspace":
        return bool(said.get("prepend_scheme") != "never")
    return any(step.get("type") == "Strip" and step.get("start") == 1 for step in steps)


def _short(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
