"""The three trainings of a codec as jobs: from a folder of pictures to a pack. PyTorch is imported inside."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import MissingExtraError, UserError, not_allowed
from haversack.models.vision.frappe import PATCHES, DecoderShape
from haversack.share._codec_jobs import classes_of, pictures_of
from haversack.share._codec_pack import Codec

U8 = NDArray[np.uint8]
Say = Callable[[str], None]


def _torch() -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingExtraError("training a codec", "torch", "workshop") from error
    return torch


def check_counts(counts: tuple[int, ...], patches: tuple[int, ...]) -> None:
    """Raises UserError for lengths that are no rising prefix lengths of the channels."""
    if not counts or list(counts) != sorted(set(counts)) or counts[0] < 1 or counts[-1] > len(patches):
        raise UserError(
            f"lengths of code rise, from 1 to {len(patches)}; write 3,6,9,12.",
            field="counts",
            given=list(counts),
            nearest="3,6,9,12",
        )


def train_encoder(
    data: Path,
    output: Path,
    *,
    channels: int = 12,
    counts: tuple[int, ...] = (3, 6, 9, 12),
    steps: int = 300,
    channel_steps: int = 40,
    sandwich_steps: int = 200,
    crop: int = 128,
    width: int = 64,
    arch: str = "CC",
    bit: float = 0.25,
    seed: int = 0,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """An encoder, its decoders and a sandwich for the eye, from pictures; written to `output`."""
    _torch()
    if not 1 <= channels <= len(PATCHES):
        raise not_allowed("channels", channels, range(1, len(PATCHES) + 1))
    patches = PATCHES[:channels]
    check_counts(counts, patches)
    _check_crop(crop, patches)
    shape = DecoderShape(8, width, arch)
    pictures = pictures_of(data, crop)
    from haversack.share._codec_train_torch import Plan

    plan = Plan(
        patches=patches,
        counts=counts,
        shape=shape,
        channel_steps=channel_steps,
        decoder_steps=steps,
        crop=crop,
        bit=bit,
        seed=seed,
    )
    start = time.monotonic()
    codec = codec_of(pictures, plan, sandwich_steps, say)
    return _written(codec, output, "train-encoder", len(pictures), time.monotonic() - start, seed)


def codec_of(pictures: list[U8], plan: Any, sandwich_steps: int, say: Say = lambda text: None) -> Codec:
    """All three parts learned from `pictures` under a `_codec_train_torch.Plan`."""
    from haversack.share import _codec_train_torch as learning
    from haversack.share._codec_sandwich_torch import train_sandwich as sandwich

    found = learning.train_channels(pictures, plan, say)
    decoders = learning.train_decoders(found, pictures, plan, say)
    encoder = learning.encoder_of(found)
    states = {
        count: {name: one.detach().numpy().copy() for name, one in decoder.state_dict().items()}
        for count, decoder in decoders.items()
    }
    made = sandwich(pictures, sandwich_steps, crop=plan.crop, seed=plan.seed, say=say)
    tables = learning.coder_tables(encoder, pictures)
    pair, stored = made.colours.pair(), made.tables.stored()
    return Codec(encoder, plan.shape, states, pair, stored, tables, alpha=made.alpha)


def train_sandwich(
    source: str,
    data: Path,
    output: Path,
    *,
    steps: int = 300,
    variant: str = "D",
    crop: int = 128,
    seed: int = 0,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """The codec `source` with colours and tables learned anew on pictures of `data`."""
    _torch()
    codec = Codec.open(source)
    _check_crop(crop, codec.encoder.patches)
    pictures = pictures_of(data, crop)
    from haversack.share._codec_sandwich_torch import train_sandwich as sandwich

    start = time.monotonic()
    made = sandwich(pictures, steps, variant=variant, crop=crop, seed=seed, say=say)
    codec = replace(
        codec, pair=made.colours.pair(), tables=made.tables.stored(), alpha=made.alpha, task="", path=None
    )
    return _written(codec, output, "train-sandwich", len(pictures), time.monotonic() - start, seed)


def finetune(
    source: str,
    data: Path,
    output: Path,
    *,
    channels: int | None = None,
    teacher: Path | None = None,
    task: str = "classes",
    steps: int = 300,
    teacher_steps: int = 400,
    crop: int = 96,
    bit: float = 0.10,
    seed: int = 0,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """The codec `source` tuned for telling the classes of the folder `data` apart. `teacher`: a checkpoint
    whose classes are the folder's in the order of their names; without one a small classifier is trained."""
    _torch()
    codec = Codec.open(source)
    count = max(codec.decoders) if channels is None else channels
    if count not in codec.decoders:
        raise not_allowed("channels", count, sorted(codec.decoders))
    _check_crop(crop, codec.encoder.patches)
    names, pictures = classes_of(data, crop)
    from haversack.share import _codec_finetune_torch as tuning
    from haversack.share import _codec_teacher_torch as teaching

    start = time.monotonic()
    sample = teaching.Sampler(pictures, crop, 16)
    if teacher is None:
        network: Any = teaching.train_classifier(sample, teacher_steps, seed=seed, say=say)
    else:
        network, classes = teaching.teacher_of(teacher)
        if classes != len(names):
            raise UserError(
                f"{teacher} tells {classes} classes apart and {data} has {len(names)}.",
                field="teacher",
                given=classes,
                nearest=len(names),
            )
    made = tuning.finetune(
        codec,
        count,
        sample,
        tuning.classification_loss(network),
        task,
        tuning.Tuning(steps=steps, bit=bit, seed=seed),
        say,
    )
    return _written(made, output, "finetune", sum(map(len, pictures)), time.monotonic() - start, seed)


def _check_crop(crop: int, patches: tuple[int, ...]) -> None:
    if crop < 1 or crop % patches[0] or crop > 4096:
        raise UserError(
            f"crops have a side that is a multiple of {patches[0]}.",
            field="crop",
            given=crop,
            nearest=max(patches[0], round(crop / patches[0]) * patches[0]),
        )


def _written(
    codec: Codec, output: Path, how: str, pictures: int, seconds: float, seed: int
) -> dict[str, Any]:
    codec.write(output, {"made_by": f"share codec {how}", "pictures": pictures, "seed": seed})
    return {
        "pack": str(output),
        "pictures": pictures,
        "encoder": f"{codec.encoder.id:08x}",
        "pair": codec.pair.id,
        "task": codec.task,
        "n_trained": sorted(codec.decoders),
        "seconds": seconds,
    }
