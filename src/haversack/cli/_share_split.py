"""`haversack share split`: a network cut in two, its encoder's width and bits chosen frame by frame."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from haversack.cli._output import Json, print_json, show_memory, table

split = typer.Typer(help=__doc__, no_args_is_help=True, rich_markup_mode=None)

PackName = Annotated[str, typer.Argument(metavar="PACK", help="a split pack, or the name of one that ships")]
Backend = Annotated[str, typer.Option(help="what runs the encoder: onnxruntime or numpy")]
Threads = Annotated[int, typer.Option(help="threads of the network", min=1)]
Token = Annotated[str | None, typer.Option(envvar="HAVERSACK_TOKEN", help="what the server was started with")]


def register(app: typer.Typer) -> None:
    """Add the verbs to `haversack share`."""
    app.add_typer(split, name="split")


@split.command("train")
def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="the pack to write", metavar="PACK")],
    data: Annotated[
        Path | None,
        typer.Option(help="pictures: a folder a class, or any with --annotations (default: made ones)"),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(help="COCO's instances_*.json of these pictures: a detector", metavar="FILE.json"),
    ] = None,
    task: Annotated[str, typer.Option(help="of made pictures: detect, or classify (digits)")] = "detect",
    cut: Annotated[
        str, typer.Option(help="slimmable:members=4,steps=500,teacher_steps=900,... (docs/methods/share)")
    ] = "slimmable",
    side: Annotated[
        int, typer.Option(help="pixels of a picture's side, a multiple of 16", min=32, max=1024)
    ] = 96,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="a teacher that is there: a split pack's, or a published detector (its checkpoint, or the "
            "folder of it)",
            metavar="PACK|FILE",
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="where teacher and student are kept, so that a killed run goes on", metavar="DIR"),
    ] = None,
    json: Json = False,
) -> None:
    """Train a teacher, then encoder members and a decoder by distillation; write a pack of kind split."""
    from haversack.cli._share_split_work import run_train

    record = run_train(
        output,
        data=data,
        annotations=annotations,
        task=task,
        cut=cut,
        side=side,
        teacher=teacher,
        keep=keep,
    )
    if json:
        print_json(record)
        return
    print(
        f"{record['pack']}: {record['task']}, {len(record['classes'])} classes, model {record['model'][:12]}"
    )
    print(
        f"teacher: {record['metric']} {100 * record['teacher']:.1f} on {record['held_out']} pictures held out"
    )
    show_table(record)
    show_memory()


@split.command("halve")
def halve(
    pack: PackName,
    output: Annotated[Path, typer.Option("--output", "-o", help="the pack to write", metavar="PACK")],
    json: Json = False,
) -> None:
    """Write the device's half of a pack: members and levels, nothing of the server's."""
    from haversack.core.pack import Pack
    from haversack.share._split_pack import open_split, write_device_half

    opened, _ = open_split(pack)
    record = write_device_half(opened, output)
    sizes = {"whole_bytes": opened.nbytes, "device_bytes": Pack.open(output).nbytes}
    if json:
        print_json({"pack": output, "model": record.model, **sizes})
    else:
        ours, all_ = sizes["device_bytes"], sizes["whole_bytes"]
        print(f"{output}: {ours:,} bytes of {all_:,}, model {record.model[:12]}")


@split.command("bench-device")
def bench_device(
    pack: PackName,
    rounds: Annotated[int, typer.Option(help="pictures of each mode", min=7, max=10_000)] = 50,
    backend: Backend = "onnxruntime",
    threads: Threads = 1,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="write the profile, for run --profile", metavar="FILE.json"),
    ] = None,
    json: Json = False,
) -> None:
    """Measure this device: milliseconds and bytes of each mode, and what changing the mode takes."""
    from haversack.cli._share_split_work import run_bench_device

    record = run_bench_device(pack, rounds, backend, threads, output)
    if json:
        print_json(record)
        return
    rows = [
        (one["k"], one["b"], f"{one['encode_ms']:.3f}", one["payload_bytes"], f"{100 * one['quality']:.1f}")
        for one in record["modes"]
    ]
    table(
        ("k", "b", "encode ms", "bytes", record["metric"]),
        rows,
        right=("k", "b", "encode ms", "bytes", record["metric"]),
    )
    print(f"changing the mode: {record['switch_us']:.1f} us")
    show_memory()


@split.command("serve")
def serve(
    pack: PackName,
    host: Annotated[
        str, typer.Option(help="address to listen on; others than this machine need --token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one", min=0, max=65535)] = 8090,
    token: Token = None,
    threads: Threads = 1,
    least: Annotated[
        float, typer.Option(help="score from which a detection is answered", min=0.01, max=1)
    ] = 0.3,
    json: Json = False,
) -> None:
    """Serve the other half until it is interrupted; the page at / shows every device's modes and hits."""
    from haversack.share._split_halves import SplitServer
    from haversack.share._split_memory import serving_plan
    from haversack.share._split_pack import open_split
    from haversack.share._split_serve import split_service

    plan = serving_plan(*open_split(pack))
    server = SplitServer(pack, threads, least)
    service, _ = split_service(server, host, port, token)
    record: dict[str, Any] = {
        "url": service.url,
        "model": server.record.model,
        "task": server.record.task,
        "classes": server.record.classes,
        "planned_mib": round(plan.total_mib, 1),
    }
    if json:
        print_json(record)
    else:
        print(
            f"serving {pack} (model {server.record.model[:12]}) at {service.url}; "
            f"its page is {service.url}/\n"
            f"memory planned: {plan.total_mib:.0f} MiB",
            flush=True,
        )
    import sys

    sys.stdout.flush()
    service.run()


@split.command("run")
def run(
    pack: PackName,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="cam (or camN), a folder of pictures, a video, a picture, or made"
        ),
    ],
    server: Annotated[str, typer.Option(help="where share split serve listens", metavar="URL")],
    deadline_ms: Annotated[float, typer.Option(help="from the picture to the answer")] = 300.0,
    mode: Annotated[
        int | None,
        typer.Option(help="keep this mode, such as 23: two members, three bits (default: by deadline)"),
    ] = None,
    controller: Annotated[str, typer.Option(help="adaptive, or published")] = "adaptive",
    frames: Annotated[int, typer.Option(help="most pictures to send", min=1)] = 1000,
    fps: Annotated[
        float, typer.Option(help="most pictures a second; 0: as fast as answers come", min=0)
    ] = 0.0,
    link: Annotated[
        str | None,
        typer.Option(
            help="emulate a link: square, walk, a name (lte, 3g, ...), a .csv or a public .jsonl trace"
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="what bench-device wrote: encode times beforehand", metavar="FILE.json"),
    ] = None,
    token: Token = None,
    backend: Backend = "onnxruntime",
    threads: Threads = 1,
    slower: Annotated[float, typer.Option(help="play a device so many times slower", min=1)] = 1.0,
    seed: Annotated[int, typer.Option(help="of made pictures and emulated links", min=0)] = 0,
    trace: Annotated[
        Path | None, typer.Option(help="write a line of JSON a frame", metavar="FILE.jsonl")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="count the bytes sent in this ledger", metavar="FILE")
    ] = None,
    dashboard: Annotated[
        int | None, typer.Option(help="show this device at this port of this machine", min=0, max=65535)
    ] = None,
    json: Json = False,
) -> None:
    """Encode pictures here, let the server answer, and choose the mode so that each answer is in time."""
    from haversack.cli._share_split_work import run_device

    record = run_device(
        pack,
        source,
        server,
        deadline_ms=deadline_ms,
        mode=mode,
        controller=controller,
        frames=frames,
        fps=fps,
        link=link,
        profile=profile,
        token=token,
        backend=backend,
        threads=threads,
        slower=slower,
        seed=seed,
        trace=trace,
        ledger=ledger,
        dashboard=dashboard,
        say=None if json else lambda text: print(text, flush=True),
    )
    if json:
        print_json(record)
        return
    print(
        f"{record['frames']} frames, {100 * record['hit_share']:.1f} % within {deadline_ms:g} ms, "
        f"{record['lost']} lost; {record['uplink_bytes']:,} bytes sent; {record['metric']} of the modes "
        f"in time {100 * record['mean_quality']:.1f}"
    )
    rows = [(one["mode"], one["frames"]) for one in record["modes"]]
    table(("mode", "frames"), rows, right=("mode", "frames"))
    show_memory()


@split.command("play")
def play(
    pack: PackName,
    link: Annotated[
        str,
        typer.Option(help="square, walk, a name (lte, 3g, ...), a .csv or a public .jsonl trace"),
    ],
    deadline_ms: Annotated[
        float | None, typer.Option(help="from the picture to the answer (default: the trace's, or 300)")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="what bench-device wrote: encode times (default: the trace's)", metavar="FILE.json"
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="of the link", min=1, max=86_400)] = 120.0,
    seed: Annotated[int, typer.Option(help="of emulated links", min=0)] = 0,
    json: Json = False,
) -> None:
    """Play the controllers over a link in virtual time: who answers in time, and with which modes."""
    from haversack.cli._share_split_play import run_play

    record = run_play(pack, link, deadline_ms=deadline_ms, profile=profile, seconds=seconds, seed=seed)
    if json:
        print_json(record)
        return
    heads = ("controller", "frames", "in time %", record["metric"])
    rows = [
        (
            one["controller"],
            one["frames"],
            f"{100 * one['hit_share']:.1f}",
            f"{100 * one['mean_quality']:.1f}",
        )
        for one in record["controllers"]
    ]
    table(heads, rows, right=heads[1:], title=f"{record['deadline_ms']:g} ms over {link}")
    if record["traced"] is not None:
        traced = record["traced"]
        print(
            f"the trace's own device: {traced['frames']} frames, {100 * traced['hit_share']:.1f} % in time, "
            f"mAP {traced['mean_map']:.1f}"
        )
    show_memory()


@split.command("evaluate")
def evaluate(
    pack: PackName,
    data: Annotated[Path | None, typer.Option(help="a folder of pictures (default: made ones)")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="COCO's instances_*.json of them", metavar="FILE.json")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="judge these detections in COCO's result format instead of a pack's", metavar="FILE.json"
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="made pictures", min=1, max=100_000)] = 300,
    seed: Annotated[int, typer.Option(help="of made pictures", min=0)] = 0,
    json: Json = False,
) -> None:
    """Measure each mode on pictures: mAP@0.5 and mAP as COCO counts them, or accuracy."""
    from haversack.cli._share_split_work import run_evaluate

    record = run_evaluate(pack, data=data, annotations=annotations, results=results, count=count, seed=seed)
    if json:
        print_json(record)
        return
    rows = [
        (one["mode"], f"{100 * one['quality']:.1f}", f"{100 * one['coco']:.1f}") for one in record["modes"]
    ]
    table(("mode", record["metric"], "mAP"), rows, right=("mode", record["metric"], "mAP"))
    show_memory()


def show_table(record: dict[str, Any]) -> None:
    """Qualities of the modes, a row a number of members."""
    rows = [
        (f"k = {k}", *(f"{100 * value:.1f}" for value in row)) for k, row in enumerate(record["quality"], 1)
    ]
    heads = ("members", *(f"b = {bits}" for bits in range(1, 5)))
    table(heads, rows, right=heads[1:], title=f"{record['metric']} of each mode")
