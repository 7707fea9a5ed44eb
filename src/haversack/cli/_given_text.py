"""The text that a person gives: by option, in a file, or on standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from haversack.core.errors import UserError


def text_of(prompt: str | None, input: str | None) -> str:
    """The text to complete. Raises UserError for two of them, and for a file that is no text."""
    if prompt is not None:
        if input is not None:
            raise UserError("give --prompt or INPUT, not both.", field="prompt", given=str(input))
        return prompt
    if input is None and sys.stdin.isatty():
        raise UserError("give a text: --prompt TEXT, a file, or standard input.", field="prompt")
    name = "standard input" if input is None or str(input) == "-" else str(input)
    try:
        if name == "standard input":
            return sys.stdin.buffer.read().decode("utf-8")
        assert input is not None
        return Path(input).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8 text (byte {error.start}).", field="input", given=name
        ) from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}.", field="input", given=name) from error
