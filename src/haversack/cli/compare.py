"""Compare implementations of an encoder: prove their outputs equal, then time them side by side.

NumPy, PyTorch, ONNX Runtime, JAX, MLX and our own engine load the same folder. A backend that is not
installed is listed with the reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from haversack.cli._output import Json


def command(
    models: Annotated[
        list[Path], typer.Argument(help="checkpoint folders of encoders: BERT, RoBERTa, XLM-R")
    ],
    backends: Annotated[
        str | None, typer.Option(help="names with commas between (default: all that are not for a GPU)")
    ] = None,
    lengths: Annotated[
        str, typer.Option(help="characters of a text, with commas between")
    ] = "50,100,200,500",
    batches: Annotated[str, typer.Option(help="texts of a call, with commas between")] = "1,16",
    iters: Annotated[int, typer.Option(help="timed calls of a cell, 3 at least")] = 11,
    text: Annotated[Path | None, typer.Option(help="a UTF-8 text to cut from (a small one ships)")] = None,
    atol: Annotated[float, typer.Option(help="the largest difference that counts as equal")] = 1e-4,
    threads: Annotated[int | None, typer.Option(help="threads of every backend (default: all)")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write the report to this file as well")] = None,
    json: Json = False,
) -> None:
    """Prove that implementations of an encoder give equal outputs, then time them side by side.

    Every backend loads MODELS itself. When one that computes in f32 differs from the reference, no time is
    printed at all.
    """
    from haversack.bench.mlx_transformers_benchmark._backends import DEFAULT
    from haversack.bench.mlx_transformers_benchmark.compare import compare
    from haversack.cli._output import print_json
    from haversack.core._files import explain_write_errors, write_atomically
    from haversack.core.errors import UserError
    from haversack.core.progress import progress

    corpus = None
    if text is not None:
        try:
            corpus = text.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{text} is not UTF-8 text.", field="text", given=str(text)) from error
        except OSError as error:
            raise UserError(
                f"{text} cannot be read: {error.strerror}.", field="text", given=str(text)
            ) from error
    names = [name.strip() for name in backends.split(",")] if backends else list(DEFAULT)
    records = []
    with progress("comparing") as bar:
        for model in models:
            records.append(
                compare(
                    model,
                    backends=names,
                    lengths=_numbers("lengths", lengths),
                    batches=_numbers("batches", batches),
                    iterations=iters,
                    corpus=corpus,
                    tolerance=atol,
                    threads=threads,
                    tell=lambda said: bar.advance(label=said),
                )
            )
    pages = "\n".join(record.pop("markdown") for record in records)
    if markdown is not None:
        with explain_write_errors(markdown):
            write_atomically(markdown, pages.encode())
    if json:
        print_json({"models": records})
    else:
        print(pages, end="")


def _numbers(name: str, given: str) -> list[int]:
    from haversack.core.errors import UserError

    try:
        return [int(part) for part in given.split(",")]
    except ValueError as error:
        raise UserError(
            f"--{name} {given!r} is no list of whole numbers; write 50,100.", field=name, given=given
        ) from error
