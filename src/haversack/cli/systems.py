"""Show the published systems that Haversack contains, each with its computed state."""

from __future__ import annotations

from typing import Annotated

import typer

from haversack.cli._output import Json, print_json, table


def command(
    state: Annotated[
        str | None, typer.Option("--state", metavar="STATE", help="only those absent, partial or works")
    ] = None,
    json: Json = False,
) -> None:
    """Show the published systems, their state computed from what is there: absent, partial, works.

    A system works when its files, its bench, its docs pages and a fresh full result whose bars hold are
    there.
    """
    from haversack.bench import stored_result
    from haversack.core.errors import not_allowed
    from haversack.core.systems import STATES, evidence, systems

    if state is not None and state not in STATES:
        raise not_allowed("state", state, STATES)
    found = [(system, evidence(system, stored_result(system.slug))) for system in systems()]
    shown = [(system, proof) for system, proof in found if state in (None, proof.state)]
    if json:
        print_json(
            {
                "systems": [
                    {
                        "number": system.number,
                        "slug": system.slug,
                        "title": system.title,
                        "room": system.room,
                        "command": system.command,
                        "state": proof.state,
                        "headline": {"published": system.published, "ratio": proof.ratio},
                    }
                    for system, proof in shown
                ]
            }
        )
        return
    table(
        ("#", "system", "room", "state", "ours / baseline", "published"),
        [
            (
                system.number,
                system.name,
                system.room,
                proof.state,
                "-" if proof.ratio is None else f"{proof.ratio:.3g}",
                system.published,
            )
            for system, proof in shown
        ],
        right=("#", "ours / baseline"),
    )
    counted = ", ".join(f"{sum(proof.state == name for _, proof in found)} {name}" for name in STATES)
    print(f"{len(found)} systems: {counted}. `published` is each paper's figure on its own hardware.")
    for system, proof in shown:
        if proof.state == "partial":
            print(f"{system.slug} is partial: {'; '.join(proof.missing)}")
