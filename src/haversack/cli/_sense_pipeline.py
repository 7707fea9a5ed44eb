"""What `haversack sense pipeline` does between its options and its record."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haversack.core._files import write_atomically
from haversack.core.errors import UserError
from haversack.core.memory import peak_mib
from haversack.core.progress import progress

if TYPE_CHECKING:
    from haversack.sense._pipeline_recording import Recording
    from haversack.sense._pipeline_run import Pipeline


def run_pipeline(
    model: str,
    *,
    replay: Sequence[Path],
    made: int,
    camera: Path | None,
    microphone: Path | None,
    windows: int,
    config: str | None,
    deadline_ms: float,
    skip: bool,
    blocking: bool,
    batch: int,
    slower: int,
    late: str,
    profile: Path | None,
    seed: int,
    files: dict[str, Path | None],
) -> dict[str, Any]:
    """Answer windows and write what was asked for; the record of `--json`."""
    from haversack.sense._pipeline_profile import StageProfile, profile_text, read_profile
    from haversack.sense._pipeline_run import Pipeline

    streams = _streams(camera, microphone, bool(replay), made)
    _check(batch, windows, made)
    with (
        progress("starting the senses") as bar,
        Pipeline(
            model,
            config=config or _first(model),
            deadline_ms=deadline_ms,
            skip=skip,
            blocking=batch if blocking else 0,
            slower=slower,
            streams=streams,
        ) as pipeline,
    ):
        measured = None
        if config is None or files["profile"] is not None:
            given = read_profile(profile, pipeline.space) if profile is not None else None
            measured = given or pipeline.measure(step=lambda text: bar.advance(label=text))
        if config is None:
            assert measured is not None
            pipeline.config = None
            pipeline.use(measured)
        results, labels, warnings = [], [], []
        first: Recording | None = None
        for recording in _windows(pipeline, model, replay, made, streams, windows, seed, late):
            units = recording.units if recording is not None else None
            first = first or recording
            results.append(pipeline.answer(units))
            labels.append(recording.label if recording is not None else None)
            warnings += list(recording.warnings) if recording is not None else []
            bar.advance(label=f"window {len(results)}")
        plan, used = pipeline.memory_plan(), peak_mib()
        shape = pipeline.shape
    written: dict[str, dict[str, Any] | None] = {"plot": None, "profile": None, "recording": None}
    if files["plot"] is not None:
        from haversack.sense._pipeline_plot import timeline

        written["plot"] = _write(files["plot"], timeline(results[:12], shape))
    if files["profile"] is not None:
        if not isinstance(measured, StageProfile):
            raise UserError(
                "a table that was read is not written again; leave --profile out.", field="profile"
            )
        written["profile"] = _write(files["profile"], profile_text(measured))
    if files["recording"] is not None:
        from haversack.sense._pipeline_recording import write_recording

        if first is None:
            raise UserError("a live window is not kept; leave --save-recording out.", field="save_recording")
        nbytes = write_recording(files["recording"], first.units, shape, first.label)
        written["recording"] = {"path": files["recording"], "nbytes": nbytes}
    known = [(one.label == label) for one, label in zip(results, labels, strict=True) if label is not None]
    latencies = [one.latency_ms for one in results]
    return {
        "model": model,
        "mode": "blocking" if blocking else "pipelined",
        "deadline_ms": deadline_ms,
        "slower": slower,
        "windows": [{**one.record(), "truth": label} for one, label in zip(results, labels, strict=True)],
        "right": sum(known) if known else None,
        "labelled": len(known),
        "in_time": sum(latency <= deadline_ms for latency in latencies),
        "latency_ms": {
            "median": round(statistics.median(latencies), 3),
            "most": round(max(latencies), 3),
        },
        "warnings": warnings,
        "files": written,
        "ram_mib": {"planned": round(plan.total_mib, 2), "measured": round(used, 2)},
    }


def _first(model: str) -> str:
    """Any configuration: the pipeline opens with it, and the profile is measured before one is chosen."""
    from haversack.models.streams._folder import bundled, read_folder
    from haversack.sense._pipeline_space import Space

    return str(Space(read_folder(bundled(model))[0]).configs[0])


def _check(batch: int, windows: int, made: int) -> None:
    for name, value, least in (("batch", batch, 1), ("windows", windows, 1), ("made", made, 0)):
        if not least <= value <= 100_000:
            raise UserError(
                f"{name}={value} is not supported (allowed {least} to 100000).",
                field=name,
                given=value,
                nearest=least,
            )


def _streams(
    camera: Path | None, microphone: Path | None, replay: bool, made: int
) -> tuple[Path, Path] | None:
    if camera is None and microphone is None:
        if replay and made:
            raise UserError("--replay and --made do not go together; choose one.", field="made", given=made)
        return None
    if camera is None or microphone is None or replay or made:
        raise UserError(
            "live sensors are two streams and nothing else: give --camera and --microphone, without "
            "--replay and "
            "--made.",
            field="camera" if camera is None else "microphone",
        )
    from haversack.sense._pipeline_sources import check_stream

    return check_stream(camera), check_stream(microphone)


def _windows(
    pipeline: Pipeline,
    model: str,
    replay: Sequence[Path],
    made: int,
    streams: tuple[Path, Path] | None,
    windows: int,
    seed: int,
    late: str,
) -> Iterator[Recording | None]:
    from haversack.sense._pipeline_recording import read_recording

    if streams is not None:
        yield from [None] * windows
    elif replay:
        for path in replay:
            yield read_recording(path, pipeline.shape, late=late)
    else:
        yield from _made(pipeline, model, made or 5, seed)


def _made(pipeline: Pipeline, model: str, count: int, seed: int) -> Iterator[Recording]:
    """Recordings made on the spot, for models that ship with the photographs they lie over."""
    from haversack.models.streams._events import WORDS, make
    from haversack.models.streams._folder import PHOTOS, read_photos
    from haversack.sense._pipeline_recording import Recording
    from haversack.sense._pipeline_run import Units

    path = pipeline.folder / PHOTOS
    if not path.is_file() or pipeline.shape.labels != WORDS:
        raise UserError(
            f"{model} is no model of made recordings; give --replay FILE.npz, or --camera and --microphone.",
            field="replay",
        )
    found = make(count, seed, read_photos(path))
    for at in range(count):
        yield Recording(Units(found.frames[at], found.sound[at]), WORDS[found.labels[at]])


def _write(path: Path, data: bytes) -> dict[str, Any]:
    write_atomically(path, data)
    return {"path": path, "nbytes": len(data)}
