"""Train what goes to devices: a network on a person's own rows, a model on texts, a draft for a family."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from haversack.cli._output import Json, print_json, show_memory
from haversack.cli._train_cura import cura

if TYPE_CHECKING:
    from haversack.train._training import Report

app = typer.Typer(help=__doc__, no_args_is_help=True)
app.command("cura")(cura)

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="a bundled model (code), a checkpoint folder (./NAME) or a hub name (owner/name[@revision])",
    ),
]
TextFiles = Annotated[
    list[Path], typer.Option("--data", help="a UTF-8 file to learn from; may be given several times")
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
    data: TextFiles,
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
            *(target, data, output),
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
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="texts: as of train draft; labels: a network's file or folder (see docs/train.md)",
        ),
    ],
    data: Annotated[
        list[Path],
        typer.Option(
            help="a folder of pictures (a folder a class), a table of texts with labels (.csv, .tsv, .jsonl) "
            "or UTF-8 texts, which may be given several times"
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="labels: the delta to write; texts: the folder; --compare: the report (.html)",
        ),
    ] = None,
    parameters: Annotated[
        str | None,
        typer.Option(help="what learns: NAME or NAME:key=value,... (see docs/methods; texts: lora)"),
    ] = None,
    gradient: Annotated[
        str | None, typer.Option(help="labels: how a step is found (default: the planner's choice)")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="labels: the numbers it learns in (default: the planner's choice)")
    ] = None,
    ram_mib: Annotated[
        float | None, typer.Option(help="budget: peak memory in MiB; refused before work starts")
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="labels: train every method and plain fine-tuning, and report"),
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="labels: passes over the rows (default: 10)")] = None,
    batch: Annotated[int | None, typer.Option(help="labels: rows in a step (default: 16)")] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="print what would be trained and its memory, line by line, and stop"),
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="labels: try three rates first, on rows that it learns from")
    ] = False,
    head: Annotated[
        str | None,
        typer.Option(help="labels: keep the classifier or begin a new one (default: new if it has no names)"),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="tables: the column of the texts")] = None,
    label_column: Annotated[str | None, typer.Option(help="tables: the column of the labels")] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="pictures: leave out what cannot be read, and name it")
    ] = False,
    family: Annotated[
        str | None,
        typer.Option(
            help="texts: a draft whose family the model must stay in (default: its own, if it has one)",
            metavar="DRAFT",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--as", help="texts: merged (default), a checkpoint, or adapter, a PEFT adapter"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="texts: steps of the training (default: 300)")] = None,
    rows: Annotated[int | None, typer.Option(help="texts: texts in a step (default: 8)")] = None,
    length: Annotated[
        int | None,
        typer.Option(help="tokens of a text (default: plain texts 256, tables 128), within the context"),
    ] = None,
    compute: Annotated[
        str | None, typer.Option(help="texts: numbers of the matrix products, f32 (default) or bf16")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="learning rate (default: the gradient method's; texts: 0.002)")
    ] = None,
    threads: Threads = None,
    seed: Seed = 0,
    checkpoint_seconds: Checkpoint = 60.0,
    json: Json = False,
) -> None:
    """Adapt MODEL on this machine: to labelled pictures or texts, as a delta of what changed; or to plain
    texts, in a family only above the anchor, so that its draft stays right.
    """
    from haversack.cli._train_labels import LABELS, TEXTS, fit_on_labels, refuse_options, show_plan
    from haversack.cli._train_quantized import fit_quantized_model, is_quantized
    from haversack.core.errors import UserError
    from haversack.train._examples import is_labelled

    if output is None and not plan:
        raise UserError("what to write has no name; give --output (or --plan alone).", field="output")
    goal = output or Path()
    if gradient is not None and is_quantized(gradient):
        fit_quantized_model(
            *(target, data, goal),
            gradient=gradient,
            ram_mib=ram_mib,
            steps=steps,
            rows=rows,
            length=length,
            rate=rate,
            columns=(text_column or "text", label_column or "label"),
            threads=threads,
            seed=seed,
            checkpoint_seconds=checkpoint_seconds,
            plan=plan,
            json=json,
        )
        return
    if is_labelled(data):
        refuse_options(TEXTS, "plain texts, and --data is labelled")
        fit_on_labels(
            target,
            data[0],
            goal,
            slots=(parameters, gradient, precision),
            ram_mib=ram_mib,
            compare=compare,
            epochs=10 if epochs is None else epochs,
            batch=16 if batch is None else batch,
            rate=rate,
            tune=tune,
            head=head or "auto",
            columns=(text_column or "text", label_column or "label"),
            skip_broken=skip_broken,
            length=length,
            plan=plan,
            threads=threads,
            seed=seed,
            checkpoint_seconds=checkpoint_seconds,
            json=json,
        )
        return
    refuse_options(LABELS, "labelled data, and --data is plain text")
    from haversack.core.budget import Budget
    from haversack.core.memory import peak_mib
    from haversack.core.progress import progress
    from haversack.train._training import Learning
    from haversack.train.fit import LEARNING, plan_of
    from haversack.train.fit import fit as adapt

    learning = Learning(
        LEARNING.steps if steps is None else steps,
        LEARNING.rows if rows is None else rows,
        LEARNING.length if length is None else length,
        rate=LEARNING.rate if rate is None else rate,
        seed=seed,
        compute=compute or "f32",
        threads=threads,
    )
    if plan:
        memory = plan_of(target, learning, parameters or "lora", family, Budget(ram_mib=ram_mib))
        show_plan(target, parameters or "lora", memory, json=json)
        return
    with progress(f"adapting {target}", total=learning.steps) as bar:
        done = adapt(
            *(target, data, goal),
            parameters=parameters or "lora",
            family=family,
            form=form or "merged",
            learning=learning,
            budget=Budget(ram_mib=ram_mib),
            bar=bar,
            checkpoint_seconds=checkpoint_seconds,
        )
    assert done is not None
    if json:
        ram_mib_said = {"planned": round(done.memory.total_mib, 2), "measured": round(peak_mib(), 2)}
        print_json(done.record() | {"ram_mib": ram_mib_said})
        return
    _show(done.report)
    held = done.report.held_out
    print(f"held-out loss {held['loss_before']:.4f} -> {held['loss']:.4f} nats a token")
    kept = "" if done.family is None else f"; the anchor of {done.family.name} is as it was"
    print(f"{done.form}: {goal}, blocks {done.blocks[0]} to {done.blocks[-1]} changed{kept}")
    show_memory(done.memory)


Folder = Annotated[Path, typer.Option("--output", "-o", help="the folder (or file) to write")]


@app.command("apply")
def apply(
    base: Annotated[str, typer.Argument(metavar="BASE", help="the network that the delta was trained from")],
    delta: Annotated[Path, typer.Argument(metavar="DELTA", help="what train fit wrote")],
    output: Folder,
    json: Json = False,
) -> None:
    """Lay a delta over its base: a network that runs and learns like any other, with both inside."""
    from haversack.train.apply import apply as lay_over

    made = lay_over(base, delta, output)
    if json:
        print_json({"output": output, "base": made.name, "files_sha256": made.files_sha256})
        return
    print(
        f"{output}: {made.name} with {delta} over it; haversack train remove {output} gives {made.name} back"
    )


@app.command("remove")
def remove(
    applied: Annotated[Path, typer.Argument(metavar="APPLIED", help="what train apply wrote")],
    output: Folder,
    json: Json = False,
) -> None:
    """Take a delta away again: writes the base, byte for byte."""
    from haversack.train.apply import take_away

    found = take_away(applied, output)
    if json:
        print_json({"output": output, "base": found.name, "files_sha256": found.files_sha256})
        return
    print(f"{output}: {found.name}, byte for byte")


def _show(report: Report) -> None:
    print(
        f"{report.steps} steps, {report.tokens:,} tokens, {report.seconds:.0f} s; loss "
        f"{report.loss[0]:.4f} -> {report.loss[1]:.4f}"
    )
