"""What the verbs of `haversack share split` do between their options and their records."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from haversack.core import index
from haversack.core._files import write_atomically
from haversack.core.errors import DamagedFileError, UserError, not_allowed
from haversack.core.memory import peak_mib
from haversack.core.progress import progress

if TYPE_CHECKING:
    from haversack.core.link import Segment
    from haversack.share._split_halves import SlimEncoder
    from haversack.share._split_pack import SplitRecord
    from haversack.share.slimmable import Controller, Mode

CONTROLLERS = ("adaptive", "published")
PROFILE_MOST = 1 << 20


def run_train(
    output: Path,
    *,
    data: Path | None,
    annotations: Path | None,
    task: str,
    cut: str,
    side: int,
    teacher: str | None,
    keep: Path | None,
) -> dict[str, Any]:
    """Train and write; the record of `--json`."""
    from haversack.core._pack_writer import check_goal
    from haversack.models.vision._slim_record import TASKS
    from haversack.share._split_data import MADE, MADE_HELD, digits, made, read_data
    from haversack.share._split_pack import write_split
    from haversack.share._split_teachers import JUDGED, is_checkpoint, read_checkpoint
    from haversack.share.slimmable import Slimmable

    method = index.create("share", "cut", cut)
    if not isinstance(method, Slimmable):
        raise UserError(
            f"{cut} cuts no network by its layers; use slimmable.",
            field="cut",
            given=cut,
            nearest="slimmable",
        )
    if task not in TASKS:
        raise not_allowed("task", task, TASKS)
    if side % 16:
        raise UserError(
            f"side={side} is not a multiple of 16; use side={max(32, round(side / 16) * 16)}.",
            field="side",
            given=side,
            nearest=max(32, round(side / 16) * 16),
        )
    if annotations is not None and data is None:
        raise UserError("--annotations needs --data, the folder of its pictures.", field="data")
    check_goal(output.absolute())
    from haversack.share._split_training import training

    learn = training()
    began = time.monotonic()
    published = None
    if teacher is not None and is_checkpoint(teacher):
        published = read_checkpoint(teacher)
        published.check_side(side)
    with progress("reading pictures") as bar:
        if data is not None:
            known, held = read_data(data, annotations, side).divided(method.seed)
        elif task == "classify":
            known, held = digits(side)
        else:
            if side != 96:
                raise UserError(
                    "made pictures have a side of 96; give --data for others.",
                    field="side",
                    given=side,
                    nearest=96,
                )
            known, held = made(MADE, 1 + 2 * method.seed), made(MADE_HELD, 2 + 2 * method.seed)
        taken = None
        if published is not None:
            taken = learn.teacher_of_checkpoint(published, known)
        elif teacher is not None:
            taken = learn.teacher_of_pack(teacher, known)
        if taken is not None and taken.net.detector is not None:
            held = held.part(np.arange(min(len(held), JUDGED)))
        trained = learn.train_split(known, held, method, keep, lambda text: bar.advance(label=text), taken)
    record = write_split(
        output,
        trained.net,
        trained.student.gain,
        trained.tensors,
        trained.table,
        trained.teacher_quality,
        learn.METRICS[known.task],
        {"method": str(method), "pictures": "made" if data is None else data.name, "count": len(known)},
    )
    return {
        **_said(record),
        "pack": output,
        "method": str(method),
        "learned_from": len(known),
        "held_out": len(held),
        "seconds": round(time.monotonic() - began, 1),
        "ram_mib": {"measured": round(peak_mib(), 1)},
    }


def _said(record: SplitRecord) -> dict[str, Any]:
    return {
        "task": record.task,
        "classes": record.classes,
        "side": record.side,
        "members": record.members,
        "model": record.model,
        "metric": record.metric,
        "quality": record.quality,
        "teacher": record.teacher,
    }


def run_bench_device(
    pack: str, rounds: int, backend: str, threads: int, output: Path | None
) -> dict[str, Any]:
    """Measure every mode, interleaved."""
    from haversack.models.vision.slimmable import payload_bytes
    from haversack.share._split_halves import SlimEncoder

    encoder = SlimEncoder(pack, backend, threads)
    picture = np.random.default_rng(0).integers(0, 256, (encoder.side, encoder.side, 3)).astype(np.uint8)
    modes = list(encoder.record.table)
    taken: dict[Mode, list[float]] = {mode: [] for mode in modes}
    switches = []
    with progress("measuring", total=rounds) as bar:
        for number in range(rounds + 2):
            for mode in modes if number % 2 else modes[::-1]:
                before = time.perf_counter()
                encoder.set_mode(*mode)
                switches.append(time.perf_counter() - before)
                began = time.perf_counter()
                encoder.encode(picture)
                if number >= 2:
                    taken[mode].append(1000 * (time.perf_counter() - began))
            bar.advance()
    rows = [
        {
            "k": k,
            "b": b,
            "encode_ms": round(statistics.median(taken[k, b]), 4),
            "payload_bytes": payload_bytes(b, encoder.side),
            "quality": encoder.record.table[k, b],
        }
        for k, b in modes
    ]
    by_k = {
        str(k): round(
            statistics.median(value for (one, _), many in taken.items() if one == k for value in many), 4
        )
        for k in range(1, encoder.record.members + 1)
    }
    record = {
        "pack": pack,
        "backend": backend,
        "threads": threads,
        "metric": encoder.record.metric,
        "modes": rows,
        "encode_ms": by_k,
        "switch_us": round(1e6 * statistics.median(switches), 3),
        "ram_mib": {"measured": round(peak_mib(), 1)},
    }
    if output is not None:
        write_atomically(
            output, json.dumps({"encode_ms": by_k, "backend": backend, "threads": threads}).encode()
        )
    return record


def read_profile(path: Path) -> dict[int, float]:
    """k -> milliseconds, as bench-device wrote them."""
    from haversack.formats.safetensors import read_json

    raw = read_json(path, PROFILE_MOST)
    try:
        found = {int(k): float(value) for k, value in raw["encode_ms"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFileError(path, "it is no profile of bench-device", field="profile") from error
    if not found or not all(math.isfinite(value) and value > 0 for value in found.values()):
        raise DamagedFileError(path, "its times are not possible", field="profile")
    return found


def controller_of(
    name: str, mode: int | None, record: SplitRecord, encode_ms: dict[int, float]
) -> Controller:
    """The controller that the options ask for."""
    from haversack.models.vision.slimmable import check_mode, payload_bytes
    from haversack.share._split_frame import HEAD_BYTES
    from haversack.share.slimmable import Adaptive, Fixed, Published

    if mode is not None:
        check_mode(mode // 10, mode % 10, record.members)
        return Fixed((mode // 10, mode % 10))
    if name not in CONTROLLERS:
        raise not_allowed("controller", name, CONTROLLERS)
    nbytes = {one: payload_bytes(one[1], record.side) + HEAD_BYTES for one in record.table}
    if name == "published":
        return Published(record.table, nbytes)
    return Adaptive(record.table, nbytes, encode_ms)


def trace_of(link: str, seed: int) -> Sequence[Segment]:
    """The link that a name means."""
    from haversack.core.link import link as named
    from haversack.share._split_links import link_of, read_traces, square, walk

    if link == "square":
        return square()
    if link == "walk":
        return walk(600, seed)
    if link.endswith(".jsonl"):
        return link_of(read_traces(Path(link)), rtt_ms=2.0)
    return named(link, seed).trace


def run_device(
    pack: str,
    source: str,
    server: str,
    *,
    deadline_ms: float,
    mode: int | None,
    controller: str,
    frames: int,
    fps: float,
    link: str | None,
    profile: Path | None,
    token: str | None,
    backend: str,
    threads: int,
    slower: float,
    seed: int,
    trace: Path | None,
    ledger: Path | None,
    dashboard: int | None,
    say: Callable[[str], None] | None,
) -> dict[str, Any]:
    """Send pictures and gather what came of them."""
    from haversack.core.ledger import Ledger
    from haversack.share._split_device import Shot, SplitDevice
    from haversack.share._split_halves import SlimEncoder
    from haversack.share._split_pictures import pictures_of
    from haversack.share._split_proxy import ThrottledProxy

    encoder = SlimEncoder(pack, backend, threads)
    known = {} if profile is None else read_profile(profile)
    chooses = controller_of(controller, mode, encoder.record, known)
    shots: list[Shot] = []
    with contextlib.ExitStack() as stack:
        place = server
        if link is not None:
            parts = urlsplit(server if "//" in server else f"http://{server}")
            proxy = ThrottledProxy(trace_of(link, seed), parts.hostname or "", parts.port or 80, seed)
            place = f"http://127.0.0.1:{stack.enter_context(proxy).port}"
        device = SplitDevice(
            encoder,
            chooses,
            place,
            deadline_ms=deadline_ms,
            token=token,
            ledger=None if ledger is None else Ledger(ledger),
            slower=slower,
        )
        stack.callback(device.close)
        lines = stack.enter_context(trace.open("w", encoding="utf-8")) if trace is not None else None
        board = _board(dashboard, encoder, stack) if dashboard is not None else None
        if board is not None and say is not None:
            say(f"this device's page: {board[0]}/")
        device.greet()
        for name, picture in itertools.islice(_paced(pictures_of(source, encoder.side, seed), fps), frames):
            shot = device.shoot(picture)
            shots.append(shot)
            if lines is not None:
                lines.write(json.dumps({"picture": name, "deadline": deadline_ms, **shot.record()}) + "\n")
            if board is not None:
                board[1](device, shot)
            if say is not None and shot.answer is not None and len(shots) <= 20:
                say(f"{name}: {told(shot.answer)}")
    if not shots:
        raise UserError(f"{source} gave no picture.", field="source", given=source)
    counted: dict[Mode, int] = {}
    for shot in shots:
        counted[shot.mode] = counted.get(shot.mode, 0) + 1
    table = encoder.record.table
    return {
        "pack": pack,
        "source": source,
        "controller": chooses.name,
        "deadline_ms": deadline_ms,
        "frames": len(shots),
        "hits": device.hits,
        "lost": device.lost,
        "hit_share": device.hits / len(shots),
        "metric": encoder.record.metric,
        "mean_quality": sum(table[shot.mode] for shot in shots if shot.hit) / len(shots),
        "uplink_bytes": sum(shot.nbytes for shot in shots),
        "modes": [{"mode": 10 * k + b, "frames": count} for (k, b), count in sorted(counted.items())],
        "ms": {
            "encode": round(statistics.median(shot.times.encode for shot in shots), 3),
            "decode": round(statistics.median(shot.times.decode for shot in shots), 3),
            "total": round(statistics.median(shot.times.total for shot in shots), 3),
        },
        "shots": [shot.record() for shot in shots[-100:]],
        "ram_mib": {"measured": round(peak_mib(), 1)},
    }


def told(answer: dict[str, Any]) -> str:
    """An answer for people."""
    if "label" in answer:
        return f"{answer['label']} ({answer['score']:.2f})"
    found = ", ".join(f"{one['label']} {one['score']:.2f}" for one in answer["detections"][:6])
    return found or "nothing"


def _paced(pictures: Iterator[tuple[str, Any]], fps: float) -> Iterator[tuple[str, Any]]:
    due = time.monotonic()
    for each in pictures:
        wait = due - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        due = max(due, time.monotonic()) + (1 / fps if fps else 0.0)
        yield each


def _board(
    port: int, encoder: SlimEncoder, stack: contextlib.ExitStack
) -> tuple[str, Callable[[Any, Any], None]]:
    """The device's own page: (its address, what tells it of a shot)."""
    from importlib.resources import files

    from haversack.core._service import Response, Service
    from haversack.share._split_frame import HEAD_BYTES, Fares, Frame
    from haversack.share._split_serve import Board

    board = Board()
    page = files("haversack.share").joinpath("split.html").read_bytes()
    service = Service(
        {
            ("GET", "/"): lambda request: Response(page, content_type="text/html; charset=utf-8"),
            ("GET", "/v1/state"): lambda request: Response.of({"devices": board.state()}),
        },
        port=port,
    )
    service.start()
    stack.callback(service.stop, 1.0)

    def saw(device: Any, shot: Any) -> None:
        fares = Fares(device.deadline_ms, shot.times.total, device.frames, device.hits)
        k, b = shot.mode
        frame = Frame(shot.seq, k, b, 0.0, 1.0, bytes(max(shot.nbytes - HEAD_BYTES, 0)), fares)
        board.saw("this device", frame, shot.times.decode, shot.nbytes)

    return service.url, saw


def run_evaluate(
    pack: str, *, data: Path | None, annotations: Path | None, results: Path | None, count: int, seed: int
) -> dict[str, Any]:
    """Qualities of every mode, by the two halves as they ship."""
    from haversack.models.vision._average_precision import mean_average_precision
    from haversack.share._split_data import digits, made, read_data
    from haversack.share._split_halves import SlimEncoder, SplitServer

    encoder, server = SlimEncoder(pack), SplitServer(pack)
    record = encoder.record
    if results is not None:
        return _judged(results, annotations)
    if data is not None:
        shown = read_data(data, annotations, record.side)
    elif record.task == "classify":
        shown = digits(record.side)[1]
    else:
        shown = made(count, seed, "test")
    if shown.classes != record.classes:
        raise UserError(
            f"the pictures have the classes {', '.join(shown.classes)[:200]} and the pack "
            f"{', '.join(record.classes)[:200]}.",
            field="data",
            given=list(shown.classes)[:20],
            nearest=list(record.classes)[:20],
        )
    rows = []
    with progress("modes", total=len(record.table)) as bar:
        for k, b in record.table:
            encoder.set_mode(k, b)
            if shown.labels is not None:
                logits = np.stack([server.logits(*encoder.cells(one), k, b) for one in shown.pictures])
                exact = strict = float((logits.argmax(1) == shown.labels).mean())
            else:
                found = [server.found(*encoder.cells(picture), k, b) for picture in shown.pictures]
                exact = mean_average_precision(found, shown.truth, len(record.classes), [0.5])
                strict = mean_average_precision(found, shown.truth, len(record.classes))
            rows.append({"mode": 10 * k + b, "quality": exact, "coco": strict})
            bar.advance()
    return {"pack": pack, "pictures": len(shown), "metric": record.metric, "modes": rows}


def _judged(results: Path, annotations: Path | None) -> dict[str, Any]:
    """Detections in COCO's result format against annotations."""
    from haversack.formats.coco import read_coco, read_results
    from haversack.models.vision._average_precision import Truth, mean_average_precision

    if annotations is None:
        raise UserError("--results needs --annotations, the truth of its pictures.", field="annotations")
    coco = read_coco(annotations)
    found = read_results(results, coco)
    truth = [Truth(image.boxes, image.labels, image.crowd) for image in coco.images]
    exact, strict = (
        mean_average_precision(found, truth, len(coco.classes), thresholds)
        for thresholds in ((0.5,), tuple(round(0.5 + 0.05 * step, 2) for step in range(10)))
    )
    rows = [{"mode": 0, "quality": exact, "coco": strict}]
    return {"pack": str(results), "pictures": len(truth), "metric": "mAP@0.5", "modes": rows}
