"""Understand signals without a big model: measure an ECG, forecast a table of series, answer from
several sensors at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from haversack.cli._output import Json, print_json, show_memory, table

app = typer.Typer(help=__doc__, no_args_is_help=True)

Plot = Annotated[Path | None, typer.Option(help="write a picture (SVG)", metavar="FILE.svg")]


@app.callback()
def _verbs() -> None:
    """Understand signals without a big model: an ECG, a table of series, several sensors at once."""


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


@app.command("pipeline")
def pipeline(
    model: Annotated[
        str,
        typer.Argument(help="a model that ships (events) or a folder that reference/train_events.py wrote"),
    ] = "events",
    replay: Annotated[
        list[Path] | None,
        typer.Option(help="a recording to play by the clock; may be repeated", metavar="FILE.npz"),
    ] = None,
    made: Annotated[
        int, typer.Option(help="play so many made recordings (5 where nothing else is given)")
    ] = 0,
    camera: Annotated[
        Path | None, typer.Option(help="a stream of raw frames, u8 row by row", metavar="PIPE")
    ] = None,
    microphone: Annotated[
        Path | None, typer.Option(help="a stream of raw samples, s16 little endian", metavar="PIPE")
    ] = None,
    windows: Annotated[int, typer.Option(help="answer so many windows of the streams")] = 5,
    deadline_ms: Annotated[float, typer.Option(help="from the last sample to the answer")] = 60.0,
    config: Annotated[
        str | None, typer.Option(help="ENCODER:RATE:ENCODER:CHUNK, fixed (default: chosen for every window)")
    ] = None,
    skip: Annotated[bool, typer.Option(help="let the gate stop the slow sense early")] = True,
    blocking: Annotated[bool, typer.Option("--blocking", help="encode after the window, to compare")] = False,
    batch: Annotated[int, typer.Option(help="units that one call encodes with --blocking")] = 4,
    slower: Annotated[int, typer.Option(help="play a processor so many times slower")] = 1,
    late: Annotated[str, typer.Option(help="frames out of order in a recording: refuse or drop")] = "refuse",
    profile: Annotated[
        Path | None,
        typer.Option(
            help="latencies to choose by: a saved profile or a latency table (default: measured now)"
        ),
    ] = None,
    save_profile: Annotated[
        Path | None, typer.Option(help="write the measured profile", metavar="FILE.json")
    ] = None,
    save_recording: Annotated[
        Path | None, typer.Option(help="write the first window that was played", metavar="FILE.npz")
    ] = None,
    seed: Annotated[int, typer.Option(help="draws the made recordings")] = 0,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Answer from a camera and a microphone before a deadline, encoding each unit while the next is
    sensed."""
    from haversack.cli._sense_pipeline import run_pipeline

    record = run_pipeline(
        model,
        replay=replay or [],
        made=made,
        camera=camera,
        microphone=microphone,
        windows=windows,
        config=config,
        deadline_ms=deadline_ms,
        skip=skip,
        blocking=blocking,
        batch=batch,
        slower=slower,
        late=late,
        profile=profile,
        seed=seed,
        files={"plot": plot, "profile": save_profile, "recording": save_recording},
    )
    if json:
        print_json(record)
        return
    rows = []
    for one in record["windows"]:
        chosen = ":".join(str(part) for part in one["config"].values())
        units = f"{one['used'][0]}/{one['planned'][0]} + {one['used'][1]}/{one['planned'][1]}"
        note = "stopped by the gate" if one["stopped"] else ""
        said = one["label"] if one["truth"] in (None, one["label"]) else f"{one['label']} (is {one['truth']})"
        rows.append((said, f"{one['probability']:.2f}", chosen, units, f"{one['latency_ms']:.1f}", note))
    table(("answer", "sure", "configuration", "units", "ms", ""), rows, right=("sure", "ms"))
    latency, count = record["latency_ms"], len(record["windows"])
    print(
        f"{record['mode']}: answered {latency['median']:.1f} ms after the last sample (median), "
        f"{latency['most']:.1f} "
        f"at most; {record['in_time']} of {count} within {record['deadline_ms']:g} ms"
    )
    if record["right"] is not None:
        print(f"right: {record['right']} of {record['labelled']}")
    for warning in [*record["warnings"], *(each for one in record["windows"] for each in one["warnings"])]:
        print(f"note: {warning}")
    for name, written in record["files"].items():
        if written is not None:
            print(f"{name}: {written['path']}, {written['nbytes']:,} bytes")
    memory = record["ram_mib"]
    print(
        f"memory: planned {memory['planned']:.1f} MiB, measured {memory['measured']:.1f} MiB (three "
        "processes)"
    )


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
