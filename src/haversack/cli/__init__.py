"""The command line: one thin file per command."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `haversack` command."""
    raise SystemExit("haversack: no command is built yet")
