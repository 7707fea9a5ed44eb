"""Collect from the field: clips kept on a device, uploaded, checked, labelled, exported as a dataset."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from haversack.cli._output import Json, print_json, table

if TYPE_CHECKING:
    from haversack.collect._findings import Checked
    from haversack.collect.server import Server

app = typer.Typer(help=__doc__, no_args_is_help=True)


Root = Annotated[Path, typer.Option(help="the store's folder", metavar="STORE")]


@app.command("server")
def server(
    root: Root,
    host: Annotated[
        str, typer.Option(help="address to listen on; others than this machine need --token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one", min=0, max=65535)] = 8080,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="HAVERSACK_TOKEN", help="who runs the server sends it for /metrics and /v1/state"
        ),
    ] = None,
    books: Annotated[
        str | None,
        typer.Option(help="keep the books of a new store in PostgreSQL instead of SQLite", metavar="URL"),
    ] = None,
    files: Annotated[
        str | None,
        typer.Option(
            help="keep the files of a new store in a bucket instead of its folder",
            metavar="s3://BUCKET/PREFIX",
        ),
    ] = None,
    cache_mib: Annotated[
        int, typer.Option(help="MiB of clips that --files leaves in the folder for workers", min=0)
    ] = 4096,
    clip_mib: Annotated[int, typer.Option(help="most MiB of a clip", min=1)] = 2048,
    keep_free_mib: Annotated[int, typer.Option(help="MiB of the disk that stay free", min=0)] = 256,
    open_uploads: Annotated[int, typer.Option(help="unfinished uploads of a device at once", min=1)] = 64,
    stale_days: Annotated[
        float, typer.Option(help="days after which an unfinished upload is dropped")
    ] = 14.0,
    body_s: Annotated[float, typer.Option(help="most seconds that one request's body may take")] = 60.0,
    connections: Annotated[int, typer.Option(help="most open connections", min=1)] = 512,
    grace: Annotated[float, typer.Option(help="seconds that running requests get at the end", min=0)] = 30.0,
    json: Json = False,
) -> None:
    """Take uploads from enrolled devices into STORE until it is interrupted.

    Devices enrol with a code: haversack collect enrol.
    """
    from haversack.collect.server import Options, Server
    from haversack.collect.store import StoreLimits

    if books is not None:
        from haversack.collect._books import name_database

        name_database(root, books)
    if files is not None:
        from haversack.collect._objects import name_bucket

        name_bucket(root, files, cache_mib)
    limits = StoreLimits(clip_mib << 20, open_uploads, keep_free_mib << 20, stale_days * 86_400)
    options = Options(
        *(host, port, token), connections=connections, body_s=body_s, grace_s=grace, limits=limits
    )
    Server(root, options).run(_print_record if json else _print_ready)


def _print_record(server: Server) -> None:
    import sys

    print_json(server.record())
    sys.stdout.flush()


def _print_ready(server: Server) -> None:
    root = server.store.root
    print(f"{root} takes uploads at {server.url}; end with Ctrl-C")
    print(
        f"enrol a device: haversack collect enrol --root {root} --url {server.url} --contributor NAME",
        flush=True,
    )


@app.command("enrol")
def enrol(
    root: Root,
    contributor: Annotated[str, typer.Option(help="pseudonym of who agreed", metavar="NAME")],
    url: Annotated[str, typer.Option(help="where devices reach the server")] = "http://127.0.0.1:8080",
    policy: Annotated[str, typer.Option(help="version of the text that was agreed to")] = "1",
    retention_days: Annotated[int, typer.Option(help="days that clips may be kept", min=1)] = 365,
    quota_mib: Annotated[float, typer.Option(help="MiB that the device may keep here")] = 65536.0,
    hours: Annotated[float, typer.Option(help="hours until the code expires")] = 48.0,
    token_days: Annotated[float, typer.Option(help="days until the device's token expires")] = 365.0,
    svg: Annotated[Path | None, typer.Option(help="write the QR code to this file as well")] = None,
    json: Json = False,
) -> None:
    """Make a code, shown as QR, with which one device of a contributor enrols."""
    from haversack.collect._books import Books
    from haversack.collect._devices import invite
    from haversack.collect._extra import need

    segno = need("segno", "haversack collect enrol")
    code = invite(
        Books(root),
        contributor,
        policy_version=policy,
        retention_days=retention_days,
        quota_mib=quota_mib,
        hours=hours,
        token_days=token_days,
    )
    address = f"{url.rstrip('/')}/#enrol={code}"
    drawn = segno.make(address, error="m")
    if svg is not None:
        drawn.save(str(svg), kind="svg", scale=8)
    if json:
        print_json({"code": code, "address": address, "contributor": contributor, "hours": hours, "svg": svg})
        return
    drawn.terminal(compact=True)
    print(f"{address}\non a computer: haversack collect push SPOOL --to {url} --enrol {code}")


@app.command("edge")
def edge(
    source: Annotated[str, typer.Option(help="a video file, or cam0 for the first camera")],
    out: Annotated[Path, typer.Option(help="the spool: finished clips go there", metavar="SPOOL")],
    imu: Annotated[
        Path | None, typer.Option(help="CSV of motion samples: t_ns, ax, ay, az, gx, gy, gz")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="TOML with rates, thresholds, privacy, budgets")] = None,
    detector: Annotated[str, typer.Option(help="skin, hands, or an ONNX file of your own")] = "skin",
    session: Annotated[str | None, typer.Option(help="name of this session (default: the time)")] = None,
    contributor: Annotated[
        str | None, typer.Option(help="who agreed, where the spool is not enrolled", metavar="NAME")
    ] = None,
    policy_version: Annotated[str, typer.Option(help="of the text that was agreed to")] = "1",
    retention_days: Annotated[int, typer.Option(help="days that clips may be kept", min=1)] = 365,
    seconds: Annotated[float | None, typer.Option(help="end after so much of the stream")] = None,
    json: Json = False,
) -> None:
    """Watch a camera or a video and keep only clips of hands at work, as bundles in SPOOL."""
    import time as clock

    from haversack.collect._policy import read_policy
    from haversack.collect.edge import identity, read_imu, watch

    device, consent = identity(out, contributor, policy_version, retention_days)
    done = watch(
        *(source, out, device, consent),
        session=session or clock.strftime("s%Y%m%d-%H%M%S"),
        policy=read_policy(policy),
        imu=None if imu is None else read_imu(imu),
        detector=detector,
        seconds=seconds,
    )
    if json:
        print_json(vars(done))
        return
    speed = done.seconds / done.clock_s if done.clock_s > 0 else 0.0
    print(
        f"{done.seconds:.1f} s watched ({speed:.1f} times real time), {done.looks} looks, "
        f"frames by state: {done.states}"
    )
    print(f"{len(done.clips)} clips, {done.clip_bytes / 2**20:.2f} MiB, in {out}")


@app.command("push")
def push(
    spool: Annotated[Path, typer.Argument(metavar="SPOOL", help="folder of bundles to send")],
    to: Annotated[str, typer.Option(help="the server's address", metavar="URL")],
    code: Annotated[
        str | None, typer.Option("--enrol", help="enrol this device first, with a code", metavar="CODE")
    ] = None,
    chunk_kib: Annotated[int, typer.Option(help="KiB of a request", min=1, max=4096)] = 1024,
    first_wait: Annotated[float, typer.Option(help="most seconds of the first wait after a failure")] = 1.0,
    most_wait: Annotated[float, typer.Option(help="most seconds of any wait")] = 300.0,
    give_up: Annotated[float, typer.Option(help="seconds of failures after which to end")] = 3600.0,
    json: Json = False,
) -> None:
    """Send every clip of SPOOL and delete each once the server has it; go on where a killed run ended.

    Exits with 2 when a clip was refused (it stays in SPOOL).
    """
    from haversack.collect.bundle import bundles_in
    from haversack.collect.push import Patience, Pusher
    from haversack.collect.push import enrol as enrol_device
    from haversack.core.progress import progress

    if code is not None:
        enrol_device(spool, to, code)
    waiting = sum(file.stat().st_size for folder in bundles_in(spool) for file in folder.iterdir())
    with (
        progress(f"pushing {spool}", total=waiting or None) as bar,
        Pusher(
            *(spool, to),
            chunk_bytes=chunk_kib << 10,
            patience=Patience(first_wait, most_wait, give_up),
            on_progress=bar.advance,
        ) as pusher,
    ):
        done = pusher.push()
    if json:
        print_json(vars(done))
    else:
        for each in done.refused:
            print(f"{each['path']} was refused ({each['code']}): {each['reason']}")
        print(
            f"{len(done.clips)} clips of {done.payload_bytes / 2**20:.2f} MiB are on the server; "
            f"{done.sent_bytes / 2**20:.2f} MiB sent, {done.retries} tries repeated, "
            f"{len(done.refused)} refused"
        )
    if done.refused:
        raise typer.Exit(2)


@app.command("process")
def process(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="the store's folder")],
    workers: Annotated[int, typer.Option(help="processes that work at once", min=1)] = 2,
    stages: Annotated[
        str | None,
        typer.Option(
            help="names in order, parted by commas; one with a dot is a module of yours (default: all)"
        ),
    ] = None,
    attempts: Annotated[int, typer.Option(help="of a stage, before its clip is set aside", min=1)] = 3,
    timeout: Annotated[float, typer.Option(help="seconds that a stage may take for one clip")] = 600.0,
    lease: Annotated[
        float, typer.Option(help="seconds after which the work of a machine that is gone goes back")
    ] = 60.0,
    engine: Annotated[str, typer.Option(help="local, or ray: tasks on a Ray cluster")] = "local",
    json: Json = False,
) -> None:
    """Run the pipeline's stages over every clip of STORE, until nothing waits.

    A clip that crashes its worker is tried again and then set aside; the others go on.
    """
    from haversack.collect._books import Books
    from haversack.collect.process import Settings
    from haversack.collect.process import process as run
    from haversack.core.progress import progress

    chosen = None if stages is None else [name.strip() for name in stages.split(",")]
    total = Books(store).number("SELECT count(*) FROM clips WHERE state = 'complete'")
    with progress(f"processing {store}", total=total or None) as bar:
        done = run(
            store,
            chosen,
            Settings(workers, attempts, timeout, lease, engine),
            progress=lambda count: bar.advance(count - bar.done),
        )
    if json:
        print_json(vars(done))
        return
    table(
        ("stage", "version", "state", "clips", "CPU s"),
        [
            (job["stage"], job["version"], job["state"], job["count"], f"{job['cpu_s']:.1f}")
            for job in done.jobs
        ],
        right=("clips", "CPU s"),
    )
    for each in done.dropped:
        print(f"{each['stage']} dropped {each['count']}: {each['reason']}")
    for each in done.quarantined:
        print(
            f"{each['clip']} was set aside at {each['stage']} after {each['attempts']} tries: {each['error']}"
        )
    print(f"{done.seconds:.1f} s; {done.deaths} workers died and were replaced")


@app.command("export")
def export(
    store: Annotated[
        Path, typer.Argument(metavar="STORE", help="the store's folder, or a data set to convert")
    ],
    out: Annotated[
        str, typer.Option(help="the data set's folder to write, or s3://BUCKET/PREFIX", metavar="OUT")
    ],
    form: Annotated[
        str, typer.Option("--format", help="lerobot-v3, lerobot-v2.1, hdf5 or mcap")
    ] = "lerobot-v3",
    fps: Annotated[
        int | None, typer.Option(help="frames a second of the set (default: the clips' median)")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="the sentence of every episode (default: its caption's)")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="keep clips that stand for all, of so many hours", min=0)
    ] = None,
    json: Json = False,
) -> None:
    """Write the clips that passed the stages as a data set; nobody's clips are in two of its splits.

    Clips that are alike are written once. With a LeRobot set in place of STORE it is converted. collect
    validate OUT checks LeRobot sets with a reader of its own.
    """
    from haversack.collect.formats import convert, write

    if (store / "meta" / "info.json").is_file():
        done = convert(store, out, form)
    else:
        done = write(store, out, form, fps=fps, task=task, hours=hours)
    if json:
        print_json(vars(done))
        return
    splits = ", ".join(f"{name} {count}" for name, count in done.splits.items())
    print(f"{done.path}: {done.episodes} episodes, {done.frames} frames ({splits})")
    for why, count in done.left_out.items():
        print(f"{count} clips were left out: {why}")


@app.command("retarget")
def retarget(
    source: Annotated[Path, typer.Argument(metavar="SET", help="a labelled LeRobot v3.0 set")],
    robot: Annotated[Path, typer.Option(help="a gripper or a hand, as TOML", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="the folder to write")],
    json: Json = False,
) -> None:
    """Turn the hands of SET into states and actions of a robot's gripper or fingers."""
    from haversack.collect.retarget import read_robot
    from haversack.collect.retarget import retarget as run

    done = run(source, read_robot(robot), out)
    if json:
        print_json(vars(done))
        return
    print(f"{done.path}: {done.episodes} episodes, {done.frames} frames")
    print(
        f"{done.unknown} frames without a hand, {done.outside} outside the workspace; fingertips are off by "
        f"{1000 * done.residual_m:.1f} mm"
    )


@app.command("view")
def view(
    source: Annotated[Path, typer.Argument(metavar="SET", help="a labelled LeRobot v3.0 set")],
    out: Annotated[Path, typer.Option(help="the page to write")] = Path("episode.html"),
    episode: Annotated[int, typer.Option(help="which one, from 0")] = 0,
    pictures: Annotated[int, typer.Option(help="most pictures of the page", min=2, max=2000)] = 120,
    json: Json = False,
) -> None:
    """Write an episode as one HTML page: pictures with the hands over them, the path, the actions."""
    from haversack.collect.view import view as run

    made = run(source, episode, out, most=pictures)
    if json:
        print_json({"path": made, "episode": episode, "bytes": made.stat().st_size})
    else:
        print(f"{made}: {made.stat().st_size / 2**20:.1f} MiB; open it in a browser")


@app.command("forget")
def forget(
    contributor: Annotated[str, typer.Argument(metavar="CONTRIBUTOR", help="the pseudonym")],
    root: Root,
    json: Json = False,
) -> None:
    """Remove every clip, result, export, device and row of CONTRIBUTOR, refuse new ones, and prove it."""
    from haversack.collect.forget import forget as run

    done = run(root, contributor)
    if json:
        print_json(vars(done))
        return
    print(
        f"removed: {done.clips} clips, {done.devices} devices, {done.files} files, "
        f"{len(done.exports)} exports that held them"
    )
    print(
        f"proof: {done.searched_files} files, {done.searched_bytes / 2**20:.2f} MiB, were read; none has the "
        "pseudonym, an id or a removed file's hash"
    )
    print(f"tombstone: {done.mark}")


@app.command("validate")
def validate(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="a bundle's folder, a spool or store, or a data set")
    ],
    decode: Annotated[bool, typer.Option(help="decode every picture as well")] = True,
    json: Json = False,
) -> None:
    """Check bundles whole (names, hashes, consent, timestamps, the video beside its table), or a data set.

    Prints every finding and exits with 0 (all are whole) or 2.
    """
    from haversack.collect._findings import Checked, Finding, check_bundle
    from haversack.collect._objects import PLACE, fetched
    from haversack.collect.bundle import MANIFEST, bundles_in
    from haversack.collect.lerobot_reader import validate_dataset
    from haversack.core.errors import UserError

    if (path / "meta" / "info.json").exists():
        _show_checked(
            path, [(path, Checked(None, [Finding("set", s) for s in validate_dataset(path)], {}))], json
        )
        return
    folders: Iterable[Path] = [path] if (path / MANIFEST).exists() else bundles_in(path)
    if (path / PLACE).is_file():
        folders = fetched(path)
    checked = [(folder, check_bundle(folder, decode=decode)) for folder in folders]
    if not checked:
        raise UserError(
            f"{path} holds no bundle (DEVICE/SESSION/CLIP/{MANIFEST}).", field="path", given=str(path)
        )
    _show_checked(path, checked, json)


def _show_checked(path: Path, checked: list[tuple[Path, Checked]], json: bool) -> None:
    """Print what was found; exits with 2 when something is refused."""
    refused = sum(bool(found.findings) for _, found in checked)
    if json:
        print_json(
            {
                "path": path,
                "bundles": [
                    {"path": folder, "whole": not found.findings, **_findings(found)}
                    for folder, found in checked
                ],
                "refused": refused,
            }
        )
    else:
        for folder, found in checked:
            print(f"{folder}: {'refused' if found.findings else 'whole'}{_numbers(found.numbers)}")
            for each in found.findings:
                print(f"  {each.code}: {each.what}")
        print(f"{len(checked)} checked, {refused} refused")
    if refused:
        raise typer.Exit(2)


def _findings(found: Checked) -> dict[str, object]:
    return {
        "findings": [{"code": each.code, "what": each.what} for each in found.findings],
        "numbers": found.numbers or None,
    }


def _numbers(numbers: dict[str, object]) -> str:
    if not numbers:
        return ""
    return f" ({numbers['frames']} frames, {numbers['seconds']:.2f} s)"
