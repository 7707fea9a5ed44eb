"""What `haversack sense forecast` does between its options and its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from haversack.core._files import write_atomically
from haversack.core.errors import UserError
from haversack.core.memory import peak_mib
from haversack.core.progress import progress
from haversack.formats.series_csv import read_series, write_series


def run_forecast(
    path: Path,
    options: dict[str, Any],
    *,
    impute: str,
    channels: Sequence[str] | None,
    pack: Path | None,
    output: Path | None,
    ahead: Path | None,
    c: Path | None,
    plot: Path | None,
) -> dict[str, Any]:
    """Forecast a table and write what was asked for; the record of `--json`."""
    from haversack.models.series.mixlinear import MixLinear
    from haversack.sense import forecast as job

    split = options.pop("split")
    _check_options(options, pack, output)
    parts = _split(split)
    series = read_series(path, impute=impute, channels=channels)
    tested: list[Any] = []
    warnings = list(series.warnings)
    rows = None
    ridge = None
    if pack is not None:
        model, forward = job.apply_pack(pack, series)
    else:
        ask = job.Ask(**options, split=parts)
        with progress("fitting", total=len(job.FORECASTERS) if ask.compare else 1) as bar:
            done = job.forecast(series, ask, bar)
        model, forward, tested, warnings = done.model, done.ahead, done.tested, done.warnings
        rows, ridge = done.rows, done.ridge
    files: dict[str, dict[str, Any] | None] = {"pack": None, "forecast": None, "c": None, "plot": None}
    if c is not None:
        if not isinstance(model, MixLinear):
            raise UserError(
                f"only mixlinear is written as C, not {model.name}; use --model mixlinear.",
                field="model",
                given=model.name,
                nearest="mixlinear",
            )
        from haversack.models.series._mixlinear_c import c_source

        files["c"] = _write(c, c_source(model).encode())
    if output is not None:
        files["pack"] = {"path": output, "nbytes": job.save(done, output)}
    if ahead is not None:
        files["forecast"] = _write(ahead, write_series(ahead, series, forward))
    if plot is not None:
        files["plot"] = _write(plot, job.plot(series, model, forward, tested))
    start = len(series.values)
    return {
        "table": path,
        "rows": start,
        "channels": list(series.channels),
        "step": series.step,
        "filled": series.filled,
        "model": model.name,
        "horizon": model.horizon,
        "seq": model.seq,
        "period": getattr(model, "period", None),
        "parameters": model.count(),
        "ridge": ridge,
        "split": list(rows) if rows is not None else None,
        "backtest": [one.record() for one in tested],
        "forecast": [
            {"time": series.time_of(start + at), "values": [float(value) for value in row]}
            for at, row in enumerate(forward)
        ],
        "warnings": warnings,
        "files": files,
        "ram_mib": {"measured": round(peak_mib(), 2)},
    }


def _check_options(options: dict[str, Any], pack: Path | None, output: Path | None) -> None:
    if pack is not None:
        if options["horizon"] is not None or output is not None:
            field = "horizon" if options["horizon"] is not None else "output"
            raise UserError(
                f"--{field} does not go with --pack: the forecaster is fitted already; leave it out.",
                field=field,
                given=str(options["horizon"] or output),
            )
        return
    if options["horizon"] is None:
        raise UserError("how far to forecast is not said; add --horizon STEPS.", field="horizon")


def _split(text: str) -> tuple[float, float, float]:
    try:
        parts = tuple(float(part) for part in text.split(","))
        if len(parts) != 3:
            raise ValueError
    except ValueError:
        raise UserError(
            f"--split {text!r} is not three numbers; write 0.7,0.1,0.2 or rows.",
            field="split",
            given=text,
            nearest="0.7,0.1,0.2",
        ) from None
    return parts[0], parts[1], parts[2]


def _write(path: Path, data: bytes) -> dict[str, Any]:
    write_atomically(path, data)
    return {"path": path, "nbytes": len(data)}
