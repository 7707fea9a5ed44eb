"""`haversack train cura`: a network of some hundred numbers from a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from haversack.cli._output import Json, print_json, show_memory


def cura(
    table: Annotated[Path, typer.Argument(metavar="TABLE.csv", help="a table with a header")],
    target: Annotated[str | None, typer.Option(help="the column to learn; of a forecast, the series")] = None,
    task: Annotated[str, typer.Option(help="regress, classify, text, image or forecast")] = "regress",
    budget: Annotated[int, typer.Option("--budget-params", help="learned numbers at most")] = 500,
    text: Annotated[
        str | None, typer.Option(help="the column of texts (default: the first other one)")
    ] = None,
    horizon: Annotated[int, typer.Option(help="steps of a forecast")] = 24,
    clip: Annotated[str, typer.Option(help="tanh, sin (periodic targets) or relu")] = "tanh",
    hashing: Annotated[bool, typer.Option(help="hash words, so that unseen ones are allowed")] = False,
    steps: Annotated[int, typer.Option(help="steps of the training")] = 2000,
    restarts: Annotated[int, typer.Option(help="first weights that are tried")] = 5,
    seed: Annotated[int, typer.Option(help="draws first weights and held-out rows")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write a pack of one file")] = None,
    c: Annotated[Path | None, typer.Option("--c", help="write the network as one C file, int8")] = None,
    predict: Annotated[
        Path | None, typer.Option(help="apply this pack to the table, learn nothing", metavar="PACK")
    ] = None,
    json: Json = False,
) -> None:
    """Train CURA (a reconstruction): a residual gated network that fits a budget of numbers."""
    from haversack.core._files import write_atomically
    from haversack.core.errors import UserError
    from haversack.core.memory import peak_mib
    from haversack.core.progress import progress
    from haversack.train import cura as job

    if predict is not None:
        _, made = job.predict(predict, table)
        if json:
            print_json({"table": table, "pack": predict, "predictions": made})
            return
        for one in made:
            print(one)
        return
    if target is None:
        raise UserError("what to learn is not said; add --target COLUMN.", field="target")
    ask = job.Ask(task, target, text, horizon, budget, clip, hashing, steps, restarts, seed)
    with progress(f"training on {table.name}", total=steps) as bar:
        done = job.learn(table, ask, bar.advance)
    files: dict[str, dict[str, Any] | None] = {}
    for name, path in (("pack", output), ("c", c)):
        files[name] = None
        if path is not None:
            if name == "pack":
                nbytes = job.save(done, path)
            else:
                data = done.model.export_c(rows=done.x).encode()
                write_atomically(path, data)
                nbytes = len(data)
            files[name] = {"path": path, "nbytes": nbytes}
    counted = done.count()
    record = {
        "table": table,
        "task": task,
        "target": target,
        "width": done.model.width,
        "blocks": done.model.blocks,
        "counts": counted,
        "rows": {"train": done.rows[0], "test": done.rows[1]},
        "metric": done.metric,
        "test": done.test,
        "naive": done.naive,
        "seconds": done.seconds,
        "files": files,
        "ram_mib": {"measured": round(peak_mib(), 2)},
    }
    if json:
        print_json(record)
        return
    print(
        f"{done.model.width} units, {done.model.blocks} cells: {counted['learned']:,} learned and "
        f"{counted['fixed']:,} "
        f"fixed numbers, {counted['bytes']:,} bytes as float32; {done.seconds:.1f} s"
    )
    print(f"{done.metric} on {done.rows[1]} test rows: {done.test:.4f} (without a model {done.naive:.4f})")
    for name, file in files.items():
        if file is not None:
            print(f"{name}: {file['path']}, {file['nbytes']:,} bytes")
    show_memory()
