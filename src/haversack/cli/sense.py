"""Understand signals without a big model: measure an ECG, forecast a table of series."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from haversack.cli._output import Json, print_json, show_memory, table

app = typer.Typer(help=__doc__, no_args_is_help=True)

Plot = Annotated[Path | None, typer.Option(help="write a picture (SVG)", metavar="FILE.svg")]


@app.callback()
def _verbs() -> None:
    """Understand signals without a big model: measure an ECG, forecast a table of series."""


@app.command("forecast")
def forecast(
    series: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE.csv", help="first column time at equal steps, then one number a channel"
        ),
    ],
    horizon: Annotated[
        int | None, typer.Option(help="steps to forecast; of a pack: its own (leave it out)")
    ] = None,
    model: Annotated[str, typer.Option(help="mixlinear, sparsetsf, dlinear or seasonal-naive")] = "mixlinear",
    seq: Annotated[
        int | None, typer.Option(help="steps of a window, a multiple of the period (default: 30 periods)")
    ] = None,
    period: Annotated[
        int | None, typer.Option(help="steps of a period (default: found by autocorrelation)")
    ] = None,
    bins: Annotated[
        int | None, typer.Option("--lpf", help="low bins that MixLinear's frequency path keeps")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="MixLinear's share of the time path, 0 to 1")] = None,
    split: Annotated[
        str, typer.Option(help="training, validation, test: shares, or rows (8640,2880,2880)")
    ] = "0.7,0.1,0.2",
    impute: Annotated[str, typer.Option(help="how gaps are filled: none, linear, previous")] = "none",
    channels: Annotated[str | None, typer.Option(help="columns to read, with commas between")] = None,
    compare: Annotated[bool, typer.Option(help="backtest the other forecasters too")] = True,
    pack: Annotated[
        Path | None, typer.Option(help="forecast with this saved forecaster, fit nothing")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="write the forecaster, a pack of one file")
    ] = None,
    ahead: Annotated[Path | None, typer.Option(help="write the forecast (CSV)", metavar="FILE.csv")] = None,
    c: Annotated[Path | None, typer.Option("--c", help="write MixLinear as one C file, int8")] = None,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Forecast the steps behind a table's end, by a model that was fitted on the table in seconds.

    The errors are of every window of the test part, which nothing was fitted to or chosen on.
    """
    from haversack.cli._sense_forecast import run_forecast

    options = {
        "horizon": horizon,
        "model": model,
        "seq": seq,
        "period": period,
        "bins": bins,
        "alpha": alpha,
        "split": split,
        "compare": compare,
    }
    picked = None if channels is None else [name.strip() for name in channels.split(",")]
    record = run_forecast(
        series,
        options,
        impute=impute,
        channels=picked,
        pack=pack,
        output=output,
        ahead=ahead,
        c=c,
        plot=plot,
    )
    if json:
        print_json(record)
        return
    if record["backtest"]:
        rows = [
            (
                one["name"],
                f"{one['parameters']:,}",
                f"{one['mse']:.4f}",
                f"{one['mae']:.4f}",
                f"{one['seconds']:.2f}",
            )
            for one in record["backtest"]
        ]
        right = ("numbers", "MSE", "MAE", "s to fit")
        table(("forecaster", *right), rows, right=right)
    print(
        f"{record['model']}: {record['horizon']} steps from {record['seq']}, period {record['period']}, "
        f"{record['parameters']:,} learned numbers"
    )
    print(f"forecast: {record['forecast'][0]['time']} to {record['forecast'][-1]['time']}")
    for warning in record["warnings"]:
        print(f"note: {warning}")
    for name, file in record["files"].items():
        if file is not None:
            print(f"{name}: {file['path']}, {file['nbytes']:,} bytes")
    show_memory()


@app.command("ecg")
def ecg(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="a WFDB record (.hea), an EDF file or a table of numbers")
    ],
    fs: Annotated[
        float | None, typer.Option("--fs", help="samples a second; needed for tables without times")
    ] = None,
    lead: Annotated[str | None, typer.Option(help="name or number of the lead (default: II)")] = None,
    units: Annotated[
        str | None, typer.Option(help="mV, uV or V (default: the file's, else amplitudes are relative)")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="fixed, or published: the public program, its slips included")
    ] = "fixed",
    qtc: Annotated[str, typer.Option(help="bazett, fridericia, framingham or hodges")] = "bazett",
    sex: Annotated[
        str, typer.Option(help="female, male or unknown: moves the cut of the long QT")
    ] = "unknown",
    stream: Annotated[bool, typer.Option(help="play the file as a stream, ten seconds at a time")] = False,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Measure PR, QRS, QT, QTc, rate and wave shapes of one lead of an ECG. Not a medical device."""
    from haversack.cli._sense_ecg import run_ecg

    record = run_ecg(
        file,
        rate=fs,
        lead=lead,
        units=units,
        profile=profile,
        qtc=qtc,
        sex=sex,
        stream=stream,
        plot=plot,
    )
    if json:
        print_json(record)
        return
    for update in record["updates"] or []:
        shown = ", ".join(f"{key} {_whole(update[key])}" for key in ("pr_ms", "qrs_ms", "qt_ms", "rate_bpm"))
        print(f"{update['seconds']:8.2f} s  {shown}")
    rows = [
        (name, _whole(figure["value"]), figure["unit"] if figure["value"] is not None else figure["reason"])
        for name, figure in record["figures"].items()
    ]
    beats = len(record["beats"])
    print(f"lead {record['lead']}, {record['seconds']:g} s, {beats} beats, profile {record['profile']}")
    table(("figure", "value", ""), rows, right=("value",))
    for alarm in record["alarms"]:
        state = {True: "RAISED", False: "not raised", None: "cannot be computed"}[alarm["raised"]]
        print(f"{alarm['name']}: {state} ({alarm['operating_point']})")
    print(f"quality {record['quality']:.2f}; amplitudes: {record['amplitude_unit']}")
    for warning in record["warnings"]:
        print(f"note: {warning}")
    if record["plot"] is not None:
        print(f"plot: {record['plot']['path']}")
    print(record["notice"])
    show_memory()


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
