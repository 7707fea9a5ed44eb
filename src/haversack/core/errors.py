"""Errors that a person can act on: what was wrong, what arrived, what is allowed, what to do.

`UserError` ends a command with exit code 2 and one sentence (with `--json`: `error`, `field`, `given`,
`nearest`). Anything else that escapes is ours and ends it with exit code 1. `KeyboardInterrupt` ends it with
130.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class HaversackError(Exception):
    """Base of all errors raised on purpose; `str(error)` is one sentence."""

    exit_code = 1


class UserError(HaversackError):
    """Something the caller can mend.

    `field` names the option or record field, `given` is what arrived, `nearest` the nearest value that would
    work.
    """

    exit_code = 2

    def __init__(
        self, sentence: str, *, field: str | None = None, given: Any = None, nearest: Any = None
    ) -> None:
        super().__init__(sentence)
        self.field = field
        self.given = given
        self.nearest = nearest

    def record(self) -> dict[str, Any]:
        """The error as `--json` prints it."""
        return {"error": str(self), "field": self.field, "given": self.given, "nearest": self.nearest}


class DamagedFileError(UserError):
    """A file that is truncated, altered or not of the format its name claims: `path` is the file, `what` the
    finding."""

    def __init__(self, path: object, what: str, *, field: str | None = None, advice: str = "") -> None:
        sentence = f"{path} is damaged: {what}." + (f" {advice}" if advice else "")
        super().__init__(sentence, field=field or "path", given=str(path))
        self.path = str(path)
        self.what = what


class MissingExtraError(UserError):
    """A part of the install that this job needs is absent; the sentence holds the exact install command."""

    def __init__(self, job: str, package: str, extra: str) -> None:
        super().__init__(
            f"{job} needs {package}, which is not installed; run: pip install 'haversack[{extra}]'",
            field="install",
            given=package,
            nearest=f"haversack[{extra}]",
        )


def nearest_name(given: str, allowed: Iterable[str]) -> str | None:
    """The allowed name most like `given`, or None when nothing is alike."""
    names = list(allowed)
    lowered = {name.lower(): name for name in names}
    found = difflib.get_close_matches(given.lower(), list(lowered), n=1, cutoff=0.4)
    return lowered[found[0]] if found else None


def unknown_name(what: str, given: str, allowed: Iterable[str], *, field: str | None = None) -> UserError:
    """The error for a name outside a closed list: names the nearest and lists what is allowed."""
    names = sorted(allowed)
    nearest = nearest_name(given, names)
    hint = f"; did you mean {nearest}?" if nearest else ""
    return UserError(
        f"{what} {given!r} is not known (allowed: {', '.join(names)}){hint}",
        field=field or what.split()[-1],
        given=given,
        nearest=nearest,
    )


def not_allowed(field: str, given: Any, allowed: Sequence[Any]) -> UserError:
    """The error for a parameter value outside its declared ones: `bits=5 is not supported (allowed ...)`."""
    nearest: Any = None
    if isinstance(given, int | float) and not isinstance(given, bool):
        numbers = [value for value in allowed if isinstance(value, int | float)]
        nearest = min(numbers, key=lambda value: abs(value - given)) if numbers else None
    elif isinstance(given, str):
        nearest = nearest_name(given, [value for value in allowed if isinstance(value, str)])
    shown = ", ".join(str(value) for value in allowed)
    advice = f"; use {field}={nearest}." if nearest is not None else "."
    return UserError(
        f"{field}={given} is not supported (allowed {shown}){advice}",
        field=field,
        given=given,
        nearest=nearest,
    )
