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
        str,
        typer.Argument(
            help="a network: ONNX (.onnx), Keras (.h5), LiteRT (.tflite), MCUNet (.pkl), a pack of one file, "
            "or what train apply wrote"
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="the folder to write")],
    target: Annotated[
        str, typer.Option(help="host, cortex-m4f, cortex-m7, riscv32, riscv32-zfh or riscv32-zvfh")
    ] = "host",
    ram_kib: Annotated[float | None, typer.Option(help="memory for the arena and hidden states")] = None,
    storage_kib: Annotated[float | None, typer.Option(help="storage for constants")] = None,
    golden: Annotated[
        int | None,
        typer.Option(help="inputs that the harness checks (4; 2 steps with --train)", min=1, max=1000),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="draws them")] = None,
    kernels: Annotated[
        str | None,
        typer.Option(
            help="direct loops, fast products of matrices, or auto, fast where it costs no RAM (default); "
            "with --train, of float convolutions: direct (the default), ROWSxCOLUMNS, or auto (measured)"
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="of the host that share a layer")] = 1,
    tune: Annotated[
        bool, typer.Option("--tune", help="measure every kernel of every layer here, keep the fastest")
    ] = False,
    train: Annotated[
        str | None,
        typer.Option(
            help="emit a training step: all, bias, head, sparse:kib=100 (as train fit --parameters), "
            "only:TENSOR+TENSOR, or a JSON file of tensors and channels"
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="of the training: fp32, fp16, bf16; int8-qas, int8")
    ] = None,
    loss: Annotated[str, typer.Option(help="cross-entropy or mean-square")] = "cross-entropy",
    classes: Annotated[int | None, typer.Option(help="a fresh classifier with this many outputs")] = None,
    momentum: Annotated[float, typer.Option(help="of the steps")] = 0.0,
    decay: Annotated[float, typer.Option(help="of weights, a step")] = 0.0,
    examples: Annotated[int, typer.Option(help="of a step, which takes their mean gradient")] = 1,
    sums: Annotated[str, typer.Option(help="of 16-bit floats: same (16 bits) or f32")] = "same",
    loss_scale: Annotated[float, typer.Option(help="a power of two that gradients carry in 16 bits")] = 1.0,
    master: Annotated[bool, typer.Option("--master", help="keep 16-bit weights in 32 bits as well")] = False,
    wide: Annotated[
        str, typer.Option(help="layers (names of weights, head) that stay in 32 bits: NAME+NAME")
    ] = "",
    rate: Annotated[float, typer.Option(help="of the golden steps")] = 0.01,
    json: Json = False,
) -> None:
    """Compile MODEL to C99 with a static memory plan, a harness with golden outputs and a report."""
    from haversack.core.errors import UserError

    if train is not None:
        from haversack.cli._embed_train import build_that_learns

        if tune or threads != 1:
            field, said = ("tune", True) if tune else ("threads", threads)
            raise UserError(f"--{field} is for networks that do not learn.", field=field, given=said)

        build_that_learns(
            *(model, output, target, ram_kib, storage_kib, golden, seed, json),
            scheme=train,
            loss=loss,
            classes=classes,
            precision=precision,
            recipe={
                "momentum": momentum,
                "decay": decay,
                "loss_scale": loss_scale,
                "master": master,
                "examples": examples,
            },
            sums=sums,
            wide=wide,
            kernels=kernels or "direct",
            rate=rate,
        )
        return
    if precision is not None or classes is not None:
        field, given = ("precision", precision) if precision is not None else ("classes", classes)
        raise UserError(
            f"--{field} is for networks that learn; give --train as well.", field=field, given=given
        )
    from haversack.embed.build import GOLDEN, SEED, build_graph, load_graph
    from haversack.embed.targets import target as target_of

    goal, place = target_of(target), Path(model)
    if place.is_dir():
        from haversack.cli._embed_models import applied_graph

        graph = applied_graph(place)
    else:
        graph = load_graph(place)
    done = build_graph(
        *(graph, output, goal),
        ram_kib=ram_kib,
        storage_kib=storage_kib,
        count=GOLDEN if golden is None else golden,
        seed=SEED if seed is None else seed,
        kernels="tune" if tune else kernels or "auto",
        threads=threads,
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
        f"of the core (an estimate: embed verify counts instructions, no board stood by)"
    )
    print(f"written: {output}: {', '.join(record['files'])}")
    print(f"check it: haversack embed verify {output}")


@app.command("calibrate")
def calibrate_command(
    target: Annotated[str, typer.Argument(help="cortex-m4f, cortex-m7 or riscv32")],
    json: Json = False,
) -> None:
    """Count what every kernel takes on an emulated core, fit the model of its instructions, print it."""
    from haversack.embed.instructions import calibrated, fitted
    from haversack.embed.targets import target as target_of

    goal = target_of(target)
    costs, worst = calibrated(goal)
    shipped = fitted().get(goal.counts_as)
    if json:
        print_json({"target": target, "costs": costs, "largest_error": worst, "shipped": shipped})
        return
    for kind, kernels in costs.items():
        for kernel, (product, place, number) in kernels.items():
            held = (shipped or {}).get(kind, {}).get(kernel)
            beside = "" if held is None else " (the model has {:.2f}, {:.1f}, {:.1f})".format(*held)
            print(
                f"{kind:11s}{kernel:18s}{product:6.2f} a product{place:6.1f} a place{number:7.1f} a number"
                f"{beside}"
            )
    print(f"instructions of an operation are at most {100 * worst:.0f} % off the fit")


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
            if run.instructions is not None:
                stack += f"; {run.instructions:,} instructions"
                if guess := done.report.get("instructions"):
                    stack += f" (the model says {guess:,}, {100 * (guess / run.instructions - 1):+.0f} %)"
            print(
                f"{run.where}: {run.differing} of {run.outputs} outputs differ (largest "
                f"{run.largest:.2g}); arena "
                f"{run.arena_used:,} bytes{stack}"
            )
    if not done.holds:
        raise HaversackError("the C does not compute what the Python graph does; please report it.")
