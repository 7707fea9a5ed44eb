"""Check a pack: every header, size, offset and checksum of every file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from haversack.cli._output import Json, print_json
from haversack.core.errors import UserError

if TYPE_CHECKING:
    from haversack.core.pack import Finding


def command(
    pack: Annotated[
        Path,
        typer.Argument(
            metavar="PACK", help="the folder of the pack, its one file, or what train apply wrote"
        ),
    ],
    key: Annotated[
        Path | None,
        typer.Option(
            help="sealed packs: the file of the key, to authenticate every block", metavar="KEYFILE"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check a pack; prints everything it finds and exits with 0 (whole) or 2 (damaged). Of a sealed pack
    anyone can check sums and places; who sealed it, and what, only the key tells.
    """
    from haversack.core.pack import Pack, check_pack
    from haversack.formats.small_pack import is_small_pack, small_pack_findings
    from haversack.run._forms import pack_findings

    small, applied = is_small_pack(pack), (pack / "applied.json").is_file()
    if small:
        findings = small_pack_findings(pack)
    elif applied:
        from haversack.train.apply import check_applied

        findings = check_applied(pack)
    else:
        findings = check_pack(pack) or _findings_of_its_kind(pack) or pack_findings(pack)
    sealed = not findings and not (small or applied) and Pack.open(pack).sealed
    if sealed:
        from haversack.formats.sealed import check_sealed, read_key

        findings = check_sealed(pack, None if key is None else read_key(key))
    elif key is not None and not findings:
        raise UserError(f"{pack} is not sealed, so no key opens it.", field="key", given=str(key))
    if json:
        record = {"pack": pack, "whole": not findings, "findings": findings}
        print_json({**record, "authentic": not findings if key is not None else None} if sealed else record)
    elif findings:
        print(f"{pack} is damaged: {len(findings)} finding{'s' if len(findings) > 1 else ''}.")
        for finding in findings:
            print(f"  {finding}")
    elif sealed and key is None:
        print(f"{pack} is whole; it is sealed, and only --key KEYFILE tells whether it is what was sealed.")
    else:
        print(f"{pack} is whole{' and what was sealed' if sealed else ''}.")
    if findings:
        raise typer.Exit(2)


def _findings_of_its_kind(pack: Path) -> list[Finding]:
    """What is wrong with the parts of a whole pack that is a codec's or a split's."""
    from haversack.core.pack import Pack

    kind = Pack.open(pack).record.kind
    if kind == "codec":
        from haversack.share._codec_pack import codec_findings

        return codec_findings(pack)
    if kind == "split":
        from haversack.share._split_pack import split_findings

        return split_findings(pack)
    return []
