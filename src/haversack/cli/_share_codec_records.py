"""What `haversack share encode`, `transcode`, `decode` and `share codec` print under `--json`, as records."""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]


class _Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class CodecMemory(_Record):
    """Peak of the command, MiB."""

    measured: float


class CodedFile(_Record):
    """A picture or stream. `output` is null on standard output; `bpp`: bits a pixel of the coded file;
    `ratio`: 24 bits over those; `ms`: of the coding alone. `channels`: sent ones. `task`: what the codec was
    tuned for, empty for the eye."""

    input: str
    output: str | None
    height: Count
    width: Count
    nbytes: Count
    bpp: Amount
    ms: Amount
    ratio: Amount | msgspec.UnsetType = msgspec.UNSET
    channels: Count | msgspec.UnsetType = msgspec.UNSET
    sent_nbytes: Count | msgspec.UnsetType = msgspec.UNSET
    sent_bpp: Amount | msgspec.UnsetType = msgspec.UNSET
    task: str | msgspec.UnsetType = msgspec.UNSET


class ShareCodedOutput(_Record):
    """`haversack share encode`, `transcode` and `decode`."""

    files: list[CodedFile]
    ram_mib: CodecMemory


class ShareCodecTrainOutput(_Record):
    """`haversack share codec train-encoder`, `train-sandwich` and `finetune`."""

    pack: str
    pictures: Count
    encoder: str
    pair: str
    task: str
    n_trained: list[int]
    seconds: Amount
    ram_mib: CodecMemory


class ShareCodecShowOutput(_Record):
    """`haversack share codec show`. `tables`: sets of three tables of 64 entries in raster order; `patches`:
    of each channel."""

    kind: str
    pair: str
    task: str
    encoder: str | None
    n_trained: list[int]
    patches: list[int]
    tables: list[list[list[int]]]


class ShareCodecPairOutput(_Record):
    """`haversack share codec pair`."""

    output: str
    pair: str
    task: str
    nbytes: Count


# Name of the schema -> what it describes.
CODEC_OUTPUTS: dict[str, type[msgspec.Struct]] = {
    "share-coded": ShareCodedOutput,
    "share-codec-train": ShareCodecTrainOutput,
    "share-codec-show": ShareCodecShowOutput,
    "share-codec-pair": ShareCodecPairOutput,
}
