"""Write a pack or a checkpoint for another program: ONNX Runtime, transformers, llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from haversack.cli._output import Json, print_json, show_memory

# The files of run/export/, by their names alone: the page of --help imports no numbers.
_FOLDER = Path(__file__).parents[1] / "run" / "export"
FORMATS = tuple(sorted(path.stem for path in _FOLDER.glob("[!_]*.py")))


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="PACK",
            help="a pack, a checkpoint folder, a GGUF file, a bundled model (code) or a hub name "
            "(owner/name[@revision])",
        ),
    ],
    to: Annotated[str, typer.Option("--to", help=f"the format: {' or '.join(FORMATS)}")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the folder (or file) to write")],
    weights: Annotated[
        str | None,
        typer.Option(
            help="numbers of the weights: stored (as they are), f32, f16, bf16 as the format allows"
        ),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(help="onnx: f32 or int8-dynamic in packed products (default: the pack's plan)"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace what an earlier export wrote there")
    ] = False,
    json: Json = False,
) -> None:
    """Write a pack or a checkpoint for another program, whole or not at all."""
    from haversack.core.errors import unknown_name
    from haversack.core.memory import peak_mib
    from haversack.run._source import open_model
    from haversack.run.export import export

    if to not in FORMATS:  # before a hub name is fetched
        raise unknown_name("format", to, FORMATS, field="to")
    opened = open_model(model)
    done = export(opened, to, output, weights=weights, activations=activations, overwrite=overwrite)
    if json:
        print_json(
            {
                "output": done.path,
                "to": done.to,
                "weights": done.weights,
                "files": done.files,
                "nbytes": done.nbytes,
                "seconds": round(done.seconds, 3),
                "notes": list(done.notes),
                "ram_mib": {
                    "planned": round(done.memory.total_mib, 2),
                    "measured": round(peak_mib(opened.source.files), 2),
                },
            }
        )
        return
    for name, size in done.files.items():
        print(f"{size / 2**20:>10.2f} MiB  {name}")
    for note in done.notes:
        print(f"note: {note}")
    print(f"{done.path}: {done.to}, weights {done.weights}, {done.seconds:.1f} s")
    show_memory(done.memory, files=opened.source.files)
