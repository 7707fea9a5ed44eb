"""Train what goes to devices: a draft for a family of targets, a model adapted to texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from haversack.cli._output import Json, print_json, show_memory

if TYPE_CHECKING:
    from haversack.train._training import Report

app = typer.Typer(help=__doc__, no_args_is_help=True)

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="a bundled model (code), a checkpoint folder (./NAME) or a hub name (owner/name[@revision])",
    ),
]
TextFiles = Annotated[
    list[Path], typer.Option("--texts", help="a UTF-8 file to learn from; may be given several times")
]
Steps = Annotated[int, typer.Option(help="steps of the training")]
RowCount = Annotated[int, typer.Option(help="texts in a step")]
Length = Annotated[int, typer.Option(help="tokens of a text")]
Compute = Annotated[str, typer.Option(help="numbers of the matrix products: f32 or bf16")]
Threads = Annotated[int | None, typer.Option(help="of the processor; part of what makes a run repeatable")]
Seed = Annotated[int, typer.Option(help="draws texts and first weights")]
Checkpoint = Annotated[
    float, typer.Option(help="seconds between checkpoints, which a killed run loses at most")
]


@app.command("draft")
def draft(
    target: Target,
    texts: TextFiles,
    output: Annotated[Path, typer.Option("--output", "-o", help="the draft's folder to write")],
    anchor_layers: Annotated[
        int | None, typer.Option(help="lowest blocks that all versions share (default: a quarter)")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="keep the bridge's feed-forward matrices as factors of this rank")
    ] = None,
    name: Annotated[str | None, typer.Option(help="what the family is called (default: the target)")] = None,
    evolution: Annotated[
        float,
        typer.Option(help="relative norm of random changes of the target in half of the steps; 0: none"),
    ] = 0.02,
    mse: Annotated[float, typer.Option(help="weight of the hidden states' mean square error")] = 0.1,
    temperature: Annotated[
        float, typer.Option(help="divides the target's logits; below 1 favours its first choice")
    ] = 1.0,
    start: Annotated[
        str,
        typer.Option(help="the block that learns begins as the target's (block), or fitted to it (fitted)"),
    ] = "fitted",
    steps: Steps = 600,
    rows: RowCount = 16,
    length: Length = 256,
    matrix_rate: Annotated[float, typer.Option(help="learning rate of matrices (Muon)")] = 0.02,
    rate: Annotated[float, typer.Option(help="learning rate of norms and biases (AdamW)")] = 0.003,
    compute: Compute = "f32",
    threads: Threads = None,
    seed: Seed = 0,
    checkpoint_seconds: Checkpoint = 60.0,
    json: Json = False,
) -> None:
    """Make a family of TARGET and train its draft once: a frozen anchor and one trained block.

    The draft stays right for later versions of the target (train fit --family DRAFT), without being trained
    or downloaded again.
    """
    from haversack.core.memory import peak_mib
    from haversack.core.progress import progress
    from haversack.train._training import Learning
    from haversack.train.draft import Bridge, train_draft

    bridge = Bridge(anchor_layers, rank, mse, evolution, temperature=temperature, start=start)
    learning = Learning(
        *(steps, rows, length),
        matrix_rate=matrix_rate,
        rate=rate,
        seed=seed,
        compute=compute,
        threads=threads,
    )
    with progress(f"drafting for {target}", total=steps) as bar:
        done = train_draft(
            *(target, texts, output),
            bridge=bridge,
            learning=learning,
            name=name,
            bar=bar,
            checkpoint_seconds=checkpoint_seconds,
        )
    assert done is not None
    if json:
        ram_mib = {"planned": round(done.memory.total_mib, 2), "measured": round(peak_mib(), 2)}
        print_json(done.record() | {"ram_mib": ram_mib})
        return
    _show(done.report)
    family = done.family
    print(
        f"its first choice is the target's on {100 * done.report.held_out['agreement']:.1f} % of held-out "
        "positions"
    )
    print(f"family: {family.name}, anchor of {family.anchor_layers} blocks, {family.anchor_sha256}")
    whole, shared = done.nbytes / 2**20, done.shared_nbytes / 2**20
    print(f"draft: {output}, {whole:.2f} MiB, of which {shared:.2f} MiB are the target's own")
    show_memory(done.memory)


@app.command("fit")
def fit(
    target: Target,
    texts: TextFiles,
    output: Annotated[Path, typer.Option("--output", "-o", help="the folder to write")],
    parameters: Annotated[
        str, typer.Option(help="what learns: NAME or NAME:key=value,... (see: docs/methods)")
    ] = "lora",
    family: Annotated[
        str | None,
        typer.Option(
            help="a draft whose family the target must stay in (default: the target's own, if it has one)",
            metavar="DRAFT",
        ),
    ] = None,
    form: Annotated[
        str, typer.Option("--as", help="merged: a checkpoint; adapter: a PEFT adapter")
    ] = "merged",
    steps: Steps = 300,
    rows: RowCount = 8,
    length: Length = 256,
    rate: Annotated[float, typer.Option(help="learning rate (AdamW)")] = 0.002,
    compute: Compute = "f32",
    threads: Threads = None,
    seed: Seed = 0,
    checkpoint_seconds: Checkpoint = 60.0,
    json: Json = False,
) -> None:
    """Adapt TARGET to texts; in a family only above the anchor, so that its draft stays right."""
    from haversack.core.memory import peak_mib
    from haversack.core.progress import progress
    from haversack.train._training import Learning
    from haversack.train.fit import fit as adapt

    learning = Learning(steps, rows, length, rate=rate, seed=seed, compute=compute, threads=threads)
    with progress(f"adapting {target}", total=steps) as bar:
        done = adapt(
            *(target, texts, output),
            parameters=parameters,
            family=family,
            form=form,
            learning=learning,
            bar=bar,
            checkpoint_seconds=checkpoint_seconds,
        )
    assert done is not None
    if json:
        ram_mib = {"planned": round(done.memory.total_mib, 2), "measured": round(peak_mib(), 2)}
        print_json(done.record() | {"ram_mib": ram_mib})
        return
    _show(done.report)
    held = done.report.held_out
    print(f"held-out loss {held['loss_before']:.4f} -> {held['loss']:.4f} nats a token")
    kept = "" if done.family is None else f"; the anchor of {done.family.name} is as it was"
    print(f"{done.form}: {output}, blocks {done.blocks[0]} to {done.blocks[-1]} changed{kept}")
    show_memory(done.memory)


def _show(report: Report) -> None:
    print(
        f"{report.steps} steps, {report.tokens:,} tokens, {report.seconds:.0f} s; loss "
        f"{report.loss[0]:.4f} -> {report.loss[1]:.4f}"
    )
