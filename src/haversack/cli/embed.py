"""Networks and controllers as C for microcontrollers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from haversack.cli._output import Json, print_json

app = typer.Typer(help=__doc__, no_args_is_help=True)


@app.callback()
def _verbs() -> None:
    """Networks and controllers as C for microcontrollers."""


@app.command("control")
def control_command(
    plant: Annotated[str, typer.Argument(help="spring, spring-cubic, tendon or plate")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the folder to write")],
    reference: Annotated[
        str | None,
        typer.Option(help="figure-eight, circle, diagonal, sine, steps, or a CSV file of points in metres"),
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="gru5, gru10, gru5-dense5, gru10-dense5 or dense")
    ] = None,
    seconds: Annotated[float, typer.Option(help="of the plant's log that the model learns from")] = 60.0,
    epochs: Annotated[int | None, typer.Option(help="passes over the log")] = None,
    horizon: Annotated[int | None, typer.Option(help="ticks that are forecast (N2)")] = None,
    moves: Annotated[int | None, typer.Option(help="inputs of the horizon that are free (Nu)")] = None,
    newton_steps: Annotated[int, typer.Option(help="Newton-Raphson steps a tick")] = 1,
    hessian: Annotated[str, typer.Option(help="gauss-newton, newton or scalar")] = "gauss-newton",
    seed: Annotated[int, typer.Option(help="draws the log, the first weights and the noise")] = 0,
    json: Json = False,
) -> None:
    """Learn a simulated plant, follow a reference by predictive control, and write the controller as C."""
    from haversack.core.progress import progress
    from haversack.embed.control import control

    changed: dict[str, Any] = {"N2": horizon, "Nu": moves, "newton_steps": newton_steps, "hessian": hessian}
    with progress(f"learning {plant}", total=1.0) as bar:
        at = 0.0

        def say(share: float) -> None:
            nonlocal at
            bar.advance(share - at)
            at = share

        done = control(
            *(plant, output),
            wish=reference,
            kind=network,
            seconds=seconds,
            epochs=epochs,
            seed=seed,
            say=say,
            **{name: value for name, value in changed.items() if value is not None},
        )
    if json:
        print_json(done.record())
        return
    far, spent = done.track.record(), done.costs
    print(
        f"{done.plant}, {done.reference}: off by {1e3 * far['mean_m']:.2f} mm in the mean, "
        f"{1e3 * far['max_m']:.2f} mm "
        f"at most; model {1e3 * done.fit.free_error:.2f} mm"
    )
    print(
        f"controller: {spent.parameters:,} parameters, {spent.flash_bytes:,} bytes of constants, "
        f"{spent.ram_bytes:,} "
        f"bytes of memory, {spent.operations:,} operations a tick"
    )
    if done.difference is not None:
        print(
            f"C beside numpy: inputs within {done.difference:.2e} of their range; {done.tick_us:.1f} us a "
            f"tick here"
        )
    for warning in done.warnings:
        print(f"warning: {warning}")
    print(f"written: {output / 'control.c'}, control.h, main.c, tracking.svg, report.json")


@app.command("build")
def build_command(
    model: Annotated[
        str, typer.Argument(help="a Keras network (.h5), a LiteRT one (.tflite) or an MCUNet one (.pkl)")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="the folder to write")],
    target: Annotated[str, typer.Option(help="host, cortex-m4f, cortex-m7 or riscv32")] = "host",
    ram_kib: Annotated[float | None, typer.Option(help="memory for the arena and hidden states")] = None,
    storage_kib: Annotated[float | None, typer.Option(help="storage for constants")] = None,
    golden: Annotated[int, typer.Option(help="inputs that the harness checks", min=1, max=1000)] = 4,
    seed: Annotated[int, typer.Option(help="draws them")] = 18,
    json: Json = False,
) -> None:
    """Compile MODEL to C99 with a static memory plan, a harness with golden outputs and a report."""
    from haversack.embed.build import build

    done = build(
        *(model, output),
        target_name=target,
        ram_kib=ram_kib,
        storage_kib=storage_kib,
        count=golden,
        seed=seed,
    )
    record = done.record()
    if json:
        print_json(record)
        return
    print(
        f"{record['model']}, {record['kind']}, for {record['target']}: arena {record['arena_bytes']:,} "
        f"bytes (no plan "
        f"is below {record['arena_bound_bytes']:,}), constants {record['constant_bytes']:,} bytes"
    )
    print(
        f"{record['macs']:,} multiplications with an addition, {record['cycles']:,} cycles by the model "
        f"of the core"
    )
    print(f"written: {output}: {', '.join(record['files'])}")
    print(f"check it: haversack embed verify {output}")


@app.command("verify")
def verify_command(
    folder: Annotated[Path, typer.Argument(help="what embed build wrote")],
    json: Json = False,
) -> None:
    """Build FOLDER for this machine and its target, run both, compare every output."""
    from haversack.core.errors import HaversackError
    from haversack.embed.verify import verify

    done = verify(folder)
    if json:
        print_json(done.record())
    else:
        for run in done.runs:
            if run.skipped is not None:
                print(f"{run.where}: skipped, {run.skipped}")
                continue
            stack = "" if run.stack_used is None else f", stack {run.stack_used:,} bytes"
            print(
                f"{run.where}: {run.differing} of {run.outputs} outputs differ (largest "
                f"{run.largest:.2g}); arena "
                f"{run.arena_used:,} bytes{stack}"
            )
    if not done.holds:
        raise HaversackError("the C does not compute what the Python graph does; please report it.")
