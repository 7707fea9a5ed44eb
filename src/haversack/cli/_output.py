"""What every command shares: JSON and tables on standard output, one sentence for every error, exit codes.

Exit codes: 0 done, 1 a fault of ours, 2 something the caller can mend, 130 interrupted, 143 terminated, 141
when the reader of our output went away. `HAVERSACK_DEBUG=1` adds the traceback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from haversack.core.errors import UserError, nearest_name

if TYPE_CHECKING:
    from haversack.core.memory import MemoryPlan

Json = Annotated[bool, typer.Option("--json", help="print one JSON document instead of text")]

LEAST = 12
_ISSUES = "the project's issue tracker"
_WORDS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "you may not access it",
    errno.EPERM: "you may not access it",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "it does not exist",
    errno.ENOTDIR: "it is not a folder",
    errno.EISDIR: "it is a folder",
    errno.EEXIST: "it exists already",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EMFILE: "too many files are open",
    errno.ENOMEM: "there is not enough memory",
}


def print_json(value: Any) -> None:
    """Print `value` (plain data, dataclasses, msgspec structs, paths, numpy numbers) as one JSON document."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value, enc_hook=_plain), indent=2)
    sys.stdout.write(text.decode() + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy numbers and arrays, which this file does not import
        return value.tolist()
    if hasattr(value, "record"):
        return value.record()
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    right: Iterable[str] = (),
    title: str | None = None,
) -> None:
    """Print rows for people. Columns named in `right` are set flush right; long cells fold on a terminal, no
    column to less than LEAST characters, and stay whole where the output is read by a program."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    flush = set(right)
    drawn = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        expand=False,
    )
    listed = [columns, *map(list, rows)]
    least = [min(LEAST, max(len(str(row[at])) for row in listed)) for at in range(len(columns))]
    for at, name in enumerate(columns):
        drawn.add_column(
            name,
            justify="right" if name in flush else "left",
            overflow="fold",
            no_wrap=name in flush,
            min_width=None if name in flush else least[at],
        )
    for row in listed[1:]:
        drawn.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    Console(file=sys.stdout, width=width()).print(drawn)


def width() -> int:
    """Characters of a line: the terminal's, or many where a program reads."""
    import shutil

    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return 200


def show_memory(plan: MemoryPlan | None = None, *, files: Iterable[Path | str] = ()) -> None:
    """The last line of a command for people: planned memory beside what this process measured.

    `files` are those whose unmapped cached pages count (core/memory.py).
    """
    from haversack.core.memory import peak_mib

    planned = f"planned {plan.total_mib:.1f} MiB, " if plan is not None else ""
    print(f"memory: {planned}measured {peak_mib(files):.1f} MiB")


def report_error(error: BaseException, *, as_json: bool, command: str = "") -> int:
    """Print what went wrong (a sentence on standard error, or with `as_json` a record on standard output) and
    return the exit code."""
    if os.environ.get("HAVERSACK_DEBUG") == "1" and not isinstance(error, SystemExit):
        import traceback

        traceback.print_exception(error)
    code, record = _judge(error, command)
    if record is None:
        if code == 141:
            _drop_output()
        return code
    try:
        if as_json:
            print_json(record)
            sys.stdout.flush()
        else:
            print(f"haversack: {record['error']}", file=sys.stderr)
    except OSError:
        _drop_output()
    return code


def _judge(error: BaseException, command: str) -> tuple[int, dict[str, Any] | None]:
    """The exit code of an error and the record to print; None prints nothing."""
    if isinstance(error, SystemExit):
        if isinstance(error.code, str):
            return 1, _record(error.code)
        return (0 if error.code is None else error.code), None
    if isinstance(error, typer.Exit):
        return error.exit_code, None
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130, _record("interrupted; nothing half written is left.")
    if isinstance(error, UserError):
        return error.exit_code, error.record()
    if hasattr(error, "format_message"):  # typer's own: the command line could not be read
        return 2, _usage_record(error, command)
    if isinstance(error, BrokenPipeError):
        return 141, None
    if isinstance(error, OSError) and error.errno in _WORDS:
        name = f"{error.filename}: " if error.filename is not None else ""
        sentence = f"{name}{_WORDS[error.errno]}."
        return 2, _record(sentence, field="path", given=str(error.filename) if error.filename else None)
    if isinstance(error, MemoryError):
        return 2, _record("this machine has not enough free memory for that.", field="memory")
    what = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
    return 1, _record(
        f"an error of ours, not yours ({what}); please report it to {_ISSUES} with the output of "
        f"HAVERSACK_DEBUG=1 haversack {command} ..."
    )


def _record(
    sentence: str, *, field: str | None = None, given: Any = None, nearest: Any = None
) -> dict[str, Any]:
    return {"error": sentence, "field": field, "given": given, "nearest": nearest}


def _usage_record(error: Any, command: str) -> dict[str, Any]:
    """A record of an error that typer raises: unknown options, missing or malformed values."""
    sentence = " ".join(str(error.format_message()).split()) or "a command is missing"
    parameter = getattr(error, "param", None)
    option = getattr(error, "option_name", None)
    field = option or getattr(parameter, "name", None) or getattr(error, "param_hint", None)
    nearest = None
    context = getattr(error, "ctx", None)
    if option and context is not None:
        known = [name for each in context.command.params for name in each.opts if name.startswith("--")]
        nearest = nearest_name(option, known)
        sentence = sentence.partition(" (Possible")[0] + (f", nearest {nearest}" if nearest else "")
    asked = context.command_path if context is not None else f"haversack {command}".rstrip()
    sentence = sentence.rstrip(".")
    given = option or getattr(error, "value", None)
    return _record(f"{sentence}; see: {asked} --help", field=field, given=given, nearest=nearest)


def _drop_output() -> None:
    """Nobody reads on: whatever is still buffered goes nowhere, so that the interpreter ends quietly."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
