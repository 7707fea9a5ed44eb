"""The `haversack` command: finds commands as files, imports the one that is called, words every error.

How to write a command. Add a file `cli/NAME.py` (underscores become dashes); there is nothing to register.
The first sentence of its docstring is its line in `haversack --help`. It holds either a function `command`
with typer annotations, when it takes an object::

    def command(
        pack: Annotated[str, typer.Argument(help="folder of the pack")],
        json: Json = False,
    ) -> None:
        from haversack.core.pack import Pack      # heavy imports belong inside

        show(Pack.open(pack), json=json)

or `app = typer.Typer(...)` whose commands are verbs (`devices list`, `devices measure`); one file never has
both. What every command shares comes from `_output.py`: `Json` (the `--json` option), `print_json`, `table`,
`show_memory`. Raise `UserError` for what a person can mend and let everything else pass: `main` below turns
it into one sentence and an exit code, and under `--json` into a record. A command never calls `sys.exit` and
never prints a traceback. Under `--json` progress is silent already. SIGTERM arrives as SystemExit(143), so
`finally` and context managers clean up.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

_FOLDER = Path(__file__).parent
# The order of `haversack --help`; commands that are not named follow by name.
_FIRST = (
    "pack",
    "run",
    "serve",
    "check",
    "export",
    "train",
    "sense",
    "compare",
    "devices",
    "systems",
    "bench",
)
_ABOUT = "Takes AI models to devices: makes a model fit a device's budget, runs it there and measures it."
_OPTIONS = (
    ("--version", "print the version"),
    ("--help", "print this page; after a command, print the command's page"),
)


def command_names() -> list[str]:
    """The commands there are: every file of this folder that is not machinery."""
    names = [path.stem.replace("_", "-") for path in _FOLDER.glob("[!_]*.py")]
    return sorted(names, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))


def summary(name: str) -> str:
    """The first sentence of a command file's docstring, read without importing it."""
    text = (_FOLDER / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    found = re.match(r'\s*r?"""(.*?)(?:"""|\n\s*\n)', text, re.DOTALL)
    sentence = " ".join(found[1].split()) if found else ""
    return re.split(r"(?<=[.!?])\s", sentence, maxsplit=1)[0].rstrip(".")


def help_page() -> str:
    """What `haversack --help` prints; made from the files' first lines, so that no command is imported."""
    import shutil
    import textwrap

    rows = [(name, summary(name)) for name in command_names()]
    width = max(len(name) for name, _ in (*rows, *_OPTIONS))
    columns = max(60, min(shutil.get_terminal_size().columns, 110))

    def listed(entries: Sequence[tuple[str, str]]) -> list[str]:
        lines = []
        for name, said in entries:
            first, *rest = textwrap.wrap(said, columns - width - 4) or [""]
            lines += [f"  {name:<{width}}  {first}", *(f"  {'':<{width}}  {line}" for line in rest)]
        return lines

    lines = ["Usage: haversack COMMAND ...", "", *textwrap.wrap(_ABOUT, columns), "", "Commands:"]
    lines += [*listed(rows), "", "Options:", *listed(_OPTIONS), ""]
    lines += [
        "Every command takes --json and --help. Exit codes: 0 done, 1 our fault, 2 yours, 130 interrupted."
    ]
    return "\n".join(lines)


def load(name: str) -> Any:
    """The command `name` as typer's parser. Raises UserError, naming the nearest, when there is none."""
    import importlib

    import typer

    from haversack.core.errors import unknown_name

    names = command_names()
    if name not in names:
        raise unknown_name("command", name, names)
    module = importlib.import_module(f"haversack.cli.{name.replace('-', '_')}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        app.command(help=module.command.__doc__)(module.command)
    else:
        app.rich_markup_mode = None
        app._add_completion = False
    return typer.main.get_command(app)


def main(arguments: list[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    before = given[: given.index("--")] if "--" in given else given
    as_json = "--json" in before
    # Large products are our kernels' own; a second pool of threads, numpy's, would only take their cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        try:
            _let_termination_clean_up()
            return _run(given, as_json)
        finally:
            sys.stdout.flush()
    except BaseException as error:  # the one place that words errors
        from haversack.cli._output import report_error

        return report_error(error, as_json=as_json, command=next(iter(given), ""))


def _run(given: list[str], as_json: bool) -> int:
    if not given or given[0] in ("--help", "-h", "help"):
        if given[:1] == ["help"] and len(given) > 1:
            return _run([*given[1:], "--help"], as_json)
        print(help_page())
        return 0
    if given[0] in ("--version", "-V"):
        from haversack import __version__

        print(f"haversack {__version__}")
        return 0
    if given[0].startswith("-"):
        from haversack.core.errors import UserError

        raise UserError(
            f"{given[0]} stands before the command; write haversack COMMAND {given[0]}.",
            field="command",
            given=given[0],
        )
    command = load(given[0])
    from contextlib import nullcontext

    from haversack.core.progress import quiet

    with quiet() if as_json else nullcontext():
        outcome = command.main(args=given[1:], prog_name=f"haversack {given[0]}", standalone_mode=False)
    if outcome == 130:  # typer's own name for an interrupt
        raise KeyboardInterrupt
    return outcome if isinstance(outcome, int) else 0


def _let_termination_clean_up() -> None:
    def end(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    try:
        signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread: whoever called keeps its handlers
        return
