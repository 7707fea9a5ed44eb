"""The command line: one thin file per command, imported when it is called (see _app.py)."""

from __future__ import annotations


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the `haversack` command; returns its exit code."""
    from haversack.cli._app import main as run

    return run(arguments)
