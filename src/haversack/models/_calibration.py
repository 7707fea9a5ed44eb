"""The texts that compression looks at: one to calibrate on, another to judge quality by, and their tokens.

The texts that ship are Python source of the standard library (`texts/`); evaluation comes from packages that
the reference models never saw. A user's own text, a file of UTF-8 or an .npy array of token numbers, takes
their place.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, UserError, not_allowed

I32 = NDArray[np.int32]
Encode = Callable[[str], list[int]]

PURPOSES = ("calibration", "evaluation")
LONGEST_FILE = 64 << 20
PART = 1 << 14  # characters tokenized at once
FEWEST_BYTES_PER_TOKEN = 1.3  # text that a tokenizer was made for has two and more


@dataclass(frozen=True)
class TokenText:
    """Tokens i32 [n] and the `byte_count` bytes of text they stand for; `source` is a file's name or
    "default".
    """

    source: str
    tokens: I32
    byte_count: int

    def part(self, count: int) -> TokenText:
        """The first `count` tokens, with their share of the bytes."""
        if count >= len(self.tokens):
            return self
        return TokenText(self.source, self.tokens[:count], round(self.byte_count * count / len(self.tokens)))


def default_text(purpose: str) -> str:
    """The text that ships for `purpose`: "calibration" or "evaluation"."""
    if purpose not in PURPOSES:
        raise not_allowed("purpose", purpose, PURPOSES)
    packed = files("haversack.models").joinpath("texts", f"code-{purpose}.txt.xz").read_bytes()
    return lzma.decompress(packed).decode("utf-8")


def token_text(encode: Encode, vocabulary: int, purpose: str, path: Path | None, fewest: int) -> TokenText:
    """The tokens of the file `path`, or of the text that ships when None.

    `encode` turns a text into token numbers below `vocabulary`; `fewest` tokens must come of it. Raises
    UserError for a file that is absent, empty, not text, too short, or from another tokenizer.
    """
    if path is not None and path.suffix == ".npy" and purpose == "calibration":
        found = _stored_tokens(path, purpose, vocabulary)
    else:
        text = default_text(purpose) if path is None else _read(path, purpose)
        found = _encoded(encode, text, "default" if path is None else path.name)
        _check_numbers(found, purpose, vocabulary)
        if found.byte_count < FEWEST_BYTES_PER_TOKEN * len(found.tokens):
            raise UserError(
                f"the {purpose} text {found.source} gives {len(found.tokens)} tokens for {found.byte_count} "
                "bytes: the "
                "model's tokenizer does not know such text; give text like what the model will see.",
                field=purpose,
                given=str(path or "default"),
            )
    if len(found.tokens) < fewest:
        raise UserError(
            f"the {purpose} text {found.source} is too short: {len(found.tokens)} tokens, {fewest} are "
            "needed.",
            field=purpose,
            given=len(found.tokens),
            nearest=fewest,
        )
    return found


def segments(tokens: I32, length: int, count: int, seed: int) -> I32:
    """`count` pieces of `length` tokens each, i32 [count, length], drawn from `tokens` by `seed`.

    They do not overlap as long as the text allows it; a text of fewer than `count` pieces gives all it has.
    """
    whole = len(tokens) // length
    if whole == 0:
        return tokens[None, :].astype(np.int32)
    rng = np.random.default_rng(seed)
    shift = int(rng.integers(0, len(tokens) - whole * length + 1))
    order = rng.permutation(whole)[:count]
    return np.stack([tokens[shift + at * length : shift + (at + 1) * length] for at in sorted(order)]).astype(
        np.int32
    )


def _read(path: Path, purpose: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST_FILE + 1)
    except OSError as error:
        raise UserError(
            f"the {purpose} file {path} cannot be read: {error.strerror}.", field=purpose, given=str(path)
        ) from error
    if len(data) > LONGEST_FILE:
        raise UserError(
            f"the {purpose} file {path} is larger than {LONGEST_FILE >> 20} MiB; a few MiB of text are "
            "plenty.",
            field=purpose,
            given=str(path),
        )
    if not data.strip():
        raise UserError(f"the {purpose} file {path} is empty.", field=purpose, given=str(path))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the {purpose} file {path} is not UTF-8 text (byte {error.start}).",
            field=purpose,
            given=str(path),
        ) from error


def _encoded(encode: Encode, text: str, source: str) -> TokenText:
    """Line by line in parts of about 16 thousand characters, so that a long text needs little memory."""
    tokens: list[I32] = []
    part: list[str] = []
    size = 0
    for line in [*text.splitlines(keepends=True), ""]:
        if part and (size > PART or not line):
            tokens.append(np.asarray(encode("".join(part)), np.int32))
            part, size = [], 0
        part.append(line)
        size += len(line)
    joined = np.concatenate(tokens) if tokens else np.empty(0, np.int32)
    return TokenText(source, joined, len(text.encode()))


def _stored_tokens(path: Path, purpose: str, vocabulary: int) -> TokenText:
    try:
        with path.open("rb") as file:
            tokens = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise UserError(
            f"the {purpose} file {path} cannot be read: {error.strerror}.", field=purpose, given=str(path)
        ) from error
    except ValueError as error:
        raise DamagedFileError(path, "it is no .npy array of token numbers", field=purpose) from error
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise UserError(
            f"the {purpose} file {path} holds {tokens.dtype} of shape {tokens.shape}, not a row of "
            "token numbers.",
            field=purpose,
            given=str(path),
        )
    found = TokenText(path.name, tokens.astype(np.int64).astype(np.int32), 0)
    _check_numbers(found, purpose, vocabulary)
    return found


def _check_numbers(text: TokenText, purpose: str, vocabulary: int) -> None:
    if text.tokens.size and not 0 <= int(text.tokens.min()) <= int(text.tokens.max()) < vocabulary:
        worst = int(text.tokens.max()) if text.tokens.max() >= vocabulary else int(text.tokens.min())
        raise UserError(
            f"the {purpose} text {text.source} has token {worst}, the model knows 0 to {vocabulary - 1}: "
            "it was made with another tokenizer.",
            field=purpose,
            given=worst,
            nearest=vocabulary - 1,
        )
