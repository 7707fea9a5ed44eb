"""Show device profiles, or measure this machine and make one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from haversack.cli._output import Json, print_json, table

if TYPE_CHECKING:
    from haversack.core.device import Device
    from haversack.kernels._machine import MachineMeasurement

app = typer.Typer(help=__doc__, no_args_is_help=True)


@app.command("list")
def list_devices(
    json: Json = False,
) -> None:
    """Show every device profile; a figure that was not measured is marked with ~."""
    from haversack.core.device import device, device_names, user_device_names

    profiles = [device(name) for name in device_names()]
    own = set(user_device_names())
    if json:
        rows = [{**profile.__dict__, "yours": profile.name in own} for profile in profiles]
        print_json({"devices": rows})
        return

    def shown(profile: Device, field: str) -> str:
        value = (
            profile.gops.get(field[5:], profile.gops["f32"])
            if field.startswith("gops.")
            else getattr(profile, field)
        )
        return f"{'~' if profile.is_estimated(field) else ''}{value:g}"

    figures = ("ram_mib", "read_gb_s", "storage_mb_s", "gops.int8", "gops.f32")
    names = ("RAM MiB", "read GB/s", "storage MB/s", "int8 GOP/s", "f32 GOP/s")
    table(
        ("device", *names, "cores", "isa", "runtime"),
        [
            (
                profile.name + (" (yours)" if profile.name in own else ""),
                *(shown(profile, field) for field in figures),
                profile.cores,
                profile.isa,
                profile.runtime,
            )
            for profile in profiles
        ],
        right=(*names, "cores"),
    )
    print("~ estimated; measure your own machine with: haversack devices measure --save NAME")


@app.command("measure")
def measure(
    save: Annotated[
        str | None,
        typer.Option("--save", metavar="NAME", help="keep the profile: `--device NAME` then finds it"),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="measure the storage that holds this folder (default: here)"),
    ] = None,
    json: Json = False,
) -> None:
    """Measure this machine: memory, storage, arithmetic, the cost of a call and the memory before any
    model."""
    import contextlib

    from haversack.core.device import check_device_name
    from haversack.core.progress import progress, quiet
    from haversack.kernels._machine import STEPS, measure_machine

    name = check_device_name(save) if save is not None else "this-machine"
    with quiet() if json else contextlib.nullcontext(), progress("measuring", total=STEPS) as bar:
        measured = measure_machine(name, folder=folder, bar=bar)
    path = measured.device.save() if save is not None else None
    if json:
        print_json({**measured.record(), "saved": str(path) if path else None})
        return
    _show(measured)
    if path is not None:
        print(f"saved as {path}; use it with: --device {name}")


def _show(measured: MachineMeasurement) -> None:
    device = measured.device
    print(device.title)
    print(f"\n{'memory, GB/s':<30}{'one thread':>12}{'all threads':>12}")
    for what, pages in measured.memory.items():
        for page, rates in pages.items():
            print(f"  {what + ' in ' + page + ' pages':<28}{rates['one']:>12.1f}{rates['all']:>12.1f}")
    storage = measured.storage
    how = (
        "past the page cache"
        if storage["direct"]
        else "dropping the page cache, which this file system needs"
    )
    print(f"storage of {storage['folder']}, {how}")
    print(f"  {'in large pieces':<28}{storage['mb_s']:>12.0f} MB/s")
    print(f"  {'4 KiB anywhere':<28}{storage['latency_us']:>12.0f} us")
    print(f"arithmetic with {device.isa}, GOP/s")
    for precision, rate in device.gops.items():
        print(f"  {precision:<28}{rate:>12.1f}")
    print(f"{'a kernel call from Python':<30}{device.call_us:>12.2f} us")
    print(f"{'memory before any model':<30}{device.base_ram_mib:>12.1f} MiB")
    print(f"\n{'this profile predicts, ms':<42}{'predicted':>12}{'measured':>12}{'ratio':>8}")
    for check in measured.checks:
        ratio = check.predicted_ms / check.measured_ms
        print(f"  {check.what:<40}{check.predicted_ms:>12.2f}{check.measured_ms:>12.2f}{ratio:>8.2f}")
