"""Check a pack: every header, size, offset and checksum of every file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from haversack.cli._output import Json, print_json


def command(
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="the folder of the pack")],
    json: Json = False,
) -> None:
    """Check a pack; prints everything it finds and exits with 0 (whole) or 2 (damaged)."""
    from haversack.core.pack import check_pack
    from haversack.run._forms import pack_findings

    findings = check_pack(pack) or pack_findings(pack)
    if json:
        print_json({"pack": pack, "whole": not findings, "findings": findings})
    elif findings:
        print(f"{pack} is damaged: {len(findings)} finding{'s' if len(findings) > 1 else ''}.")
        for finding in findings:
            print(f"  {finding}")
    else:
        print(f"{pack} is whole.")
    if findings:
        raise typer.Exit(2)
