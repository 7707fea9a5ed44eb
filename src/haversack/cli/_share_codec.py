"""The pixel cut's commands: `share encode | transcode | decode` and `share codec ...`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from haversack.cli._output import Json, print_json, show_memory, table

Inputs = Annotated[
    list[Path], typer.Argument(metavar="INPUT...", help="files or folders; - is standard input")
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="a file, a folder for several, or - (default: beside the input)"),
]
CodecName = Annotated[str, typer.Option(help="photo, or a codec's pack", metavar="CODEC")]
Steps = Annotated[int, typer.Option(help="training steps of the main part", min=1)]
Crop = Annotated[int, typer.Option(help="side of the crops that are learned from")]
Seed = Annotated[int, typer.Option(help="what is drawn follows from it")]
Pack = Annotated[Path, typer.Option("--output", "-o", help="the pack to write")]

codec_app = typer.Typer(help="Make, tune and show the codecs of share encode.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to `haversack share`."""
    app.command("encode")(encode)
    app.command("transcode")(transcode)
    app.command("decode")(decode)
    app.add_typer(codec_app, name="codec")


def encode(
    inputs: Inputs,
    output: Output = None,
    codec: CodecName = "photo",
    channels: Annotated[
        int | None, typer.Option("--channels", "-n", help="latent channels to send (default: all decodable)")
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(help="most bytes a picture; the longest code that fits is sent", min=1)
    ] = None,
    coder: Annotated[str, typer.Option(help="entropy coder: smallest, stored, range, jpeg-ls")] = "smallest",
    json: Json = False,
) -> None:
    """Code pictures on the sensor: streams (.fr) of a few latent channels, by products with patches.

    Sides need not be multiples of anything; the last row and column fill up.
    """
    from haversack.core.errors import UserError
    from haversack.formats.pictures import ENDINGS
    from haversack.share import _codec_jobs as work
    from haversack.share._codec_pack import Codec
    from haversack.share.seaotter import SeaOtter

    if max_bytes is not None and channels is not None:
        raise UserError(
            "--max-bytes chooses the channels; leave --channels out.", field="channels", given=channels
        )
    opened = Codec.open(codec)
    method = SeaOtter(channels=max(opened.decoders) if channels is None else channels, coder=coder)
    _show(work.encode(work.jobs_of(inputs, output, ".fr", ENDINGS), opened, method, max_bytes), json, "sent")


def transcode(
    inputs: Inputs,
    output: Output = None,
    codec: CodecName = "photo",
    quality: Annotated[
        int, typer.Option(help="which of the codec's sets of tables, 1 the smallest files", min=1)
    ] = 1,
    channels: Annotated[
        int | None, typer.Option("--channels", "-n", help="use only the first of the stream's channels")
    ] = None,
    json: Json = False,
) -> None:
    """Decode streams once, in the cloud, and keep each as a JPEG with learned colours and tables.

    Any viewer opens the files; their colours are right only through share decode.
    """
    from haversack.share import _codec_jobs as work
    from haversack.share._codec_pack import Codec

    jobs = work.jobs_of(inputs, output, ".jpg", (".fr",))
    _show(work.transcode(jobs, Codec.open(codec), quality, channels), json, "kept")


def decode(
    inputs: Inputs,
    output: Output = None,
    codec: Annotated[
        str,
        typer.Option("--codec", "--pair", help="photo, a codec's pack, or a pair's file", metavar="CODEC"),
    ] = "photo",
    json: Json = False,
) -> None:
    """Read transcoded JPEG files (or streams, the slow way) into pictures (.png)."""
    from haversack.share import _codec_jobs as work
    from haversack.share._codec_pack import Codec, Pair, codec_path

    path = codec_path(codec)
    opened = Codec.open(path) if path.is_dir() else None
    consumer = opened.consumer() if opened is not None else Pair.open(path)
    rows = work.decode(work.jobs_of(inputs, output, ".png", (".jpg", ".jpeg")), consumer, opened)
    _show(rows, json, "read")
    if consumer.task and not json:
        print(f"tuned for {consumer.task}: these pictures are for machines, not for people", file=sys.stderr)


@codec_app.command("train-encoder")
def train_encoder(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="a folder of pictures, or WebDataset shards")],
    output: Pack,
    channels: Annotated[int, typer.Option(help="latent channels, coarse to fine")] = 12,
    counts: Annotated[str, typer.Option(help="lengths of code that get a decoder")] = "3,6,9,12",
    steps: Steps = 300,
    width: Annotated[int, typer.Option(help="the decoder's width")] = 64,
    arch: Annotated[str, typer.Option(help="the decoder's blocks: C convolution, T attention")] = "CC",
    bit: Annotated[float, typer.Option(help="what a bit costs; more gives smaller streams")] = 0.25,
    crop: Crop = 128,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train a sensor's encoder, its decoders and a JPEG sandwich for the eye; minutes on two cores."""
    from haversack.share import _codec_training as training

    record = training.train_encoder(
        data,
        output,
        channels=channels,
        counts=_counts(counts),
        steps=steps,
        width=width,
        arch=arch,
        bit=bit,
        crop=crop,
        seed=seed,
        say=_say(json),
    )
    _trained(record, json)


@codec_app.command("train-sandwich")
def train_sandwich(
    codec: Annotated[str, typer.Argument(metavar="CODEC", help="photo, or a codec's pack")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="pictures to learn from")],
    output: Pack,
    steps: Steps = 300,
    variant: Annotated[str, typer.Option(help="of the colours: A, B, D, F")] = "D",
    crop: Crop = 128,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Learn colours and three sets of tables anew; encoder and decoders stay."""
    from haversack.share import _codec_training as training

    record = training.train_sandwich(
        codec, data, output, steps=steps, variant=variant, crop=crop, seed=seed, say=_say(json)
    )
    _trained(record, json)


@codec_app.command("finetune")
def finetune(
    codec: Annotated[str, typer.Argument(metavar="CODEC", help="photo, or a codec's pack")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="a folder with a folder for each class")],
    output: Pack,
    channels: Annotated[int | None, typer.Option("--channels", "-n", help="length of the code")] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="the task's network, a checkpoint (default: trained on DATA)")
    ] = None,
    task: Annotated[str, typer.Option(help="its name, which every JPEG carries")] = "classes",
    steps: Steps = 300,
    bit: Annotated[float, typer.Option(help="what a stored bit a pixel costs")] = 0.10,
    crop: Crop = 96,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Tune decoder, colours and table for a task; streams of sensors in the field stay valid."""
    from haversack.share import _codec_training as training

    record = training.finetune(
        codec,
        data,
        output,
        channels=channels,
        teacher=teacher,
        task=task,
        steps=steps,
        bit=bit,
        crop=crop,
        seed=seed,
        say=_say(json),
    )
    _trained(record, json)


@codec_app.command("pair")
def pair(
    codec: Annotated[str, typer.Argument(metavar="CODEC", help="photo, or a codec's pack")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the file to write (.safetensors)")],
    json: Json = False,
) -> None:
    """Write what a consumer needs to read a codec's JPEG files, as one small file."""
    from haversack.share._codec_pack import Pair

    found = Pair.open(codec)
    found.write(output)
    record = {"output": output, "pair": found.colours.id, "task": found.task, "nbytes": output.stat().st_size}
    if json:
        print_json(record)
    else:
        print(f"{output}: colour pair {found.colours.id}, {record['nbytes']:,} bytes")


@codec_app.command("show")
def show(
    codec: Annotated[
        str, typer.Argument(metavar="CODEC", help="a codec, a pair's file, or a transcoded JPEG")
    ],
    json: Json = False,
) -> None:
    """Show a codec, a pair, or what a JPEG says of itself, its tables included."""
    from haversack.share._codec_jobs import show as described

    record = described(codec)
    if json:
        print_json(record)
        return
    print(f"{record['kind']}: colour pair {record['pair'] or 'none'}, task {record['task'] or 'none'}")
    if record["encoder"]:
        print(f"encoder {record['encoder']}, patches {record['patches']}, decoders of {record['n_trained']}")
    for number, tables in enumerate(record["tables"], 1):
        for name, entries in zip(("first", "second", "third"), tables, strict=True):
            print(f"tables {number}, {name} component")
            for row in range(0, 64, 8):
                print("  " + " ".join(f"{entry:3d}" for entry in entries[row : row + 8]))


def _counts(text: str) -> tuple[int, ...]:
    from haversack.core.errors import UserError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--counts {text!r} is no list of lengths; write 3,6,9,12.",
            field="counts",
            given=text,
            nearest="3,6,9,12",
        ) from None


def _say(json: bool) -> Any:
    """Progress for people, on standard error."""
    return (lambda text: None) if json else (lambda text: print(text, file=sys.stderr, flush=True))


def _show(rows: list[dict[str, Any]], json: bool, word: str) -> None:
    from haversack.core.memory import peak_mib

    if json:
        print_json({"files": rows, "ram_mib": {"measured": round(peak_mib(), 2)}})
        return
    if any(row["output"] is None for row in rows):
        return
    cells = [
        (
            row["output"],
            f"{row['width']} x {row['height']}",
            f"{row['nbytes']:,}",
            f"{row['bpp']:.4f}",
            f"{row['ms']:.1f}",
        )
        for row in rows
    ]
    right = ("pixels", "bytes", "bits/pixel", "ms")
    table((word, *right), cells, right=right)
    show_memory()


def _trained(record: dict[str, Any], json: bool) -> None:
    from haversack.core.memory import peak_mib

    record = {**record, "ram_mib": {"measured": round(peak_mib(), 2)}}
    if json:
        print_json(record)
    else:
        made = f"{record['pictures']} pictures, {record['seconds']:.0f} s, pair {record['pair']}"
        print(f"{record['pack']}: {made}")
