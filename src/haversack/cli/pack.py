"""Make a model fit a device's budget: screen plans, measure the best, write the pack and its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from haversack.cli._output import Json, print_json, show_memory, table

if TYPE_CHECKING:
    from haversack.plan import Candidate, Outcome


ANY_DEVICE = "raspberry-pi-5"
"""Predicts what `--compare` does not show."""


def command(
    model: Annotated[
        str,
        typer.Argument(
            help="a bundled model (code), a checkpoint folder (./NAME), a GGUF file (NAME.gguf) or a "
            "hub name (owner/name[@revision])"
        ),
    ],
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="a device profile; see: haversack devices list")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the pack to write (default: MODEL.pack here)")
    ] = None,
    ram_mib: Annotated[float | None, typer.Option(help="budget: peak memory of the run, MiB")] = None,
    storage_mib: Annotated[float | None, typer.Option(help="budget: size of the pack, MiB")] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="budget: first output for a prompt of 64 tokens, ms")
    ] = None,
    energy_mj: Annotated[
        float | None, typer.Option(help="budget: modelled energy of 64 tokens read and 32 written, mJ")
    ] = None,
    max_quality_loss: Annotated[
        float | None, typer.Option(help="budget: loss over the f32 model, as a fraction (0.01 is 1 %)")
    ] = None,
    objective: Annotated[
        str, typer.Option(help="best by quality, speed or size within the budget")
    ] = "quality",
    effort: Annotated[float, typer.Option(help="seconds that the search may measure")] = 120.0,
    precision: Annotated[
        str | None, typer.Option(help="fix the precision: NAME or NAME:key=value,...")
    ] = None,
    structure: Annotated[
        str | None,
        typer.Option(
            help="fix the structure: none, low-rank:rank=0.4,solver=whitened or r-sparse:sparsity=0.5"
        ),
    ] = None,
    architecture: Annotated[str | None, typer.Option(help="fix the architecture")] = None,
    activations: Annotated[
        str | None, typer.Option(help="fix the activation type: f32 or int8-dynamic")
    ] = None,
    residency: Annotated[str | None, typer.Option(help="fix where weights live: mapped, copied, ...")] = None,
    cache_type: Annotated[str | None, typer.Option(help="fix the cache's type: f32, f16 or int8")] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            help="how the pack's prompts are read, such as dhsa:budget=2048, whose boundary predictor is "
            "taught on the calibration text and put into the pack"
        ),
    ] = None,
    requantize: Annotated[
        str | None,
        typer.Option(help="GGUF: tensors of types that are not run (Q4_K, Q6_K, ...) become int8 or f16"),
    ] = None,
    output_matrix: Annotated[
        str, typer.Option(help="the output matrix under 4-bit methods: int8, f16 or as-blocks")
    ] = "int8",
    embedding: Annotated[
        str, typer.Option(help="an embedding that is not the output matrix: f16, f32 or int8")
    ] = "f16",
    allow_kept: Annotated[
        bool, typer.Option("--allow-kept", help="leave matrices that the precision cannot take in f16")
    ] = False,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="a table of all methods; packs the best only where -o names a pack"),
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="text to calibrate on (UTF-8, or .npy of tokens); speech models: a folder of sound files"
        ),
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(help="tokens to calibrate on")] = 32768,
    evaluation: Annotated[
        Path | None, typer.Option(help="text to measure quality on (UTF-8); speech: a folder of sound")
    ] = None,
    seal: Annotated[
        bool, typer.Option("--seal", help="encrypt the weights; run them with --residency sealed")
    ] = False,
    key: Annotated[
        Path | None, typer.Option(help="--seal: the file of the owner's key", metavar="KEYFILE")
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="a PEFT LoRA adapter that is merged into the model first", metavar="FOLDER"),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            help="a draft: the pack says that it belongs to its family, which is refused where the anchor is "
            "another",
            metavar="DRAFT",
        ),
    ] = None,
    work_ram_mib: Annotated[
        float | None, typer.Option(help="memory of the packing itself, MiB (default: half of this machine's)")
    ] = None,
    seed: Annotated[int, typer.Option(help="draws the calibration text's pieces")] = 0,
    json: Json = False,
) -> None:
    """Make a model fit a device's budget: screen plans, measure the best, write the pack and its report."""
    from haversack.core.budget import Budget
    from haversack.core.device import device as find_device
    from haversack.core.errors import UserError
    from haversack.core.memory import peak_mib
    from haversack.plan import Job, Policy, half_of_this_machine_mib, pack_model

    if device is None and (output is not None or not compare):
        raise UserError(
            "there is no device to pack for; give --device NAME (see: haversack devices list).",
            field="device",
            nearest=ANY_DEVICE,
        )
    if seal != (key is not None):
        raise UserError(
            "--seal and --key KEYFILE go together; a key is made with: umask 077; openssl rand -hex 32 > "
            "KEYFILE",
            field="key" if seal else "seal",
        )
    if seal and compare:
        raise UserError("--compare does not seal; pack the method that you choose.", field="seal")
    if compare and (adapter or family):
        field = "adapter" if adapter else "family"
        raise UserError(f"--compare takes no --{field}; pack the method that you choose.", field=field)
    job = Job(
        model=model,
        output=output or Path(f"{Path(model.partition('@')[0]).name}.pack"),
        device=find_device(device or ANY_DEVICE),
        budget=Budget(
            ram_mib=ram_mib,
            storage_mib=storage_mib,
            latency_ms=latency_ms,
            energy_mj=energy_mj,
            max_quality_loss=max_quality_loss,
        ),
        objective=objective,
        effort_s=effort,
        precision=precision,
        structure=structure,
        architecture=architecture,
        activations=activations,
        residency=residency,
        cache_type=cache_type,
        attention=attention,
        policy=Policy(output=output_matrix, embedding=embedding, kept="f16" if allow_kept else None),
        calibration=calibration,
        evaluation=evaluation,
        calibration_tokens=calibration_tokens,
        work_ram_mib=work_ram_mib if work_ram_mib is not None else half_of_this_machine_mib(),
        seed=seed,
        requantize=requantize,
        key=key,
        adapter=adapter,
        family=family,
    )
    if compare:
        from haversack.cli._methods import show_comparison

        show_comparison(job, write=output is not None, limited=device is not None, as_json=json)
        return
    outcome = pack_model(job)
    if json:
        print_json(
            outcome.record() | {"ram_mib": {"planned": outcome.memory.total_mib, "measured": peak_mib()}}
        )
    else:
        _show(outcome)


def _show(outcome: Outcome) -> None:
    from rich.text import Text

    from haversack.plan import ranked

    measured = [one for one in outcome.candidates if one.source == "measured"]
    kept = [
        one for one in outcome.candidates if one.plan.precision.startswith("keep") and one not in measured
    ]
    best: dict[str, Candidate] = {}
    for one in ranked(kept, "quality"):  # what the model would take uncompressed, for comparison
        best.setdefault(one.plan.precision, one)
    structured = any(one.plan.structure != "none" for one in outcome.candidates)
    words: tuple[str, ...] = ("precision", "activations", "weights", "cache")
    rows = []
    for one in [*ranked(measured, outcome.objective), *best.values()]:
        fits = outcome.budget.fits(one.demand())
        guess = "" if one.source == "measured" else "~"
        style = "bold" if one.plan == outcome.chosen.plan else "" if fits else "dim"
        cells = (
            one.plan.precision,
            *((one.plan.structure,) if structured else ()),
            one.plan.activations,
            one.plan.residency,
            one.plan.cache_type,
            f"{one.bits:.2f}",
            "" if one.quality is None else f"{one.quality:.4f}",
            f"{guess}{100 * one.loss:+.2f} %",
            f"{guess}{one.ram_mib:.1f}",
            f"{guess}{one.storage_mib:.1f}",
            "" if one.here is None else f"{one.here:.1f}",
            f"~{one.device:.1f}",
            "yes" if fits else "no",
        )
        rows.append([Text(cell, style) for cell in cells])
    if structured:
        words = (*words[:1], "structure", *words[1:])
    numbers = ("bits", "bits/byte", "loss", "MiB RAM", "MiB disk", "tokens/s here", "there")
    table((*words, *numbers, "fits"), rows, right=numbers)
    print(
        f"{len(measured)} plans measured, {len(outcome.candidates) - len(measured)} predicted (~), "
        f"{outcome.seconds:.0f} s; chosen: {outcome.chosen.plan.label}"
    )
    if outcome.layers:
        from haversack.plan._structure import summary

        print(summary(outcome.layers))
    if outcome.sensitivity:
        bits = " ".join(str(one.bits) for one in outcome.sensitivity)
        print(f"mixed, bits by layer: {bits}; what each layer loses at fewer: see the report")
    if outcome.advice:
        print(outcome.advice)
    print(f"pack: {outcome.pack}   report: {outcome.pack / 'report.html'}")
    show_memory(outcome.memory)
