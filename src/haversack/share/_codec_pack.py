"""A codec as a pack: the sensor's encoder, decoders for several lengths of code, a colour pair with its
tables. `Codec` is all three ends of it; `Pair` is what a consumer needs, also as one small file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core._pack_writer import PackWriter
from haversack.core.errors import DamagedFileError, UserError, not_allowed, unknown_name
from haversack.core.pack import Finding, Pack, TensorSource, is_pack
from haversack.formats.latent_stream import Stream, read_stream, write_stream
from haversack.formats.safetensors import HubFolder, SafetensorsFile, write_safetensors
from haversack.formats.tabled_jpeg import read_jpeg, write_jpeg
from haversack.models.vision._frappe_onnx import OnnxDecoder
from haversack.models.vision.frappe import DecoderShape, Encoder, encoder_of
from haversack.share.seaotter import ColourPair, Half

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

BUNDLED = "photo"
ARCHITECTURE = "seaotter"
PARTS = ("weight", "bias", "sigma", "gamma")
KINDS = {"f32": "<f4", "f16": "<f2", "u8": "u1", "i32": "<i4"}
NUMBERS_MOST = 1 << 28


def codec_path(name: str | os.PathLike[str]) -> Path:
    """The folder that `name` means: a codec that ships, or a path. Raises UserError for neither."""
    path = Path(name)
    if path.exists():
        return path
    folder = Path(str(files("haversack").joinpath("reference_models", f"{name}-codec")))
    if os.sep not in str(name) and is_pack(folder):
        return folder
    raise unknown_name("codec", str(name), [BUNDLED], field="codec")


@dataclass(frozen=True)
class Pair:
    """What undoes a JPEG's colours: the pair, and the task it was tuned for (empty: for the eye)."""

    colours: ColourPair
    task: str = ""

    @classmethod
    def open(cls, name: str | os.PathLike[str]) -> Pair:
        """Of a codec, or of a file that `write` made. Raises UserError, DamagedFileError."""
        path = codec_path(name)
        if path.is_dir():
            codec = Codec.open(path)
            return cls(codec.pair, codec.task)
        file = SafetensorsFile.open(path)
        pair = _pair(_arrays(file), file.metadata.get("variant", ""), path)
        if file.metadata.get("pair") != pair.id:
            raise DamagedFileError(path, "its numbers are not those of the pair it names", field="pair")
        return cls(pair, file.metadata.get("task", ""))

    def write(self, path: Path) -> None:
        """One small file, whole or not at all."""
        tensors = _pair_tensors(self.colours)
        entries = [(name, "f32", one.shape, one.astype("<f4").tobytes()) for name, one in tensors.items()]
        pair = self.colours
        write_safetensors(path, entries, {"variant": pair.variant, "pair": pair.id, "task": self.task})

    def decode(self, jpeg: bytes, name: str = "the JPEG") -> U8:
        """The picture of a transcoded file. Raises UserError for one of another pair or of none."""
        found = read_jpeg(jpeg, name)
        if found.pair != self.colours.id:
            what = f"was written for the colour pair {found.pair}" if found.pair else "names no colour pair"
            raise UserError(
                f"{name} {what}, and this codec has {self.colours.id}; give the codec that transcoded it.",
                field="codec",
                given=self.colours.id,
                nearest=found.pair or None,
            )
        return self.colours.to_picture(np.ascontiguousarray(found.planes))


@dataclass
class Codec:
    """`decoders`: for each length of code its tensors; `tables`: u8 [k, 3, 8, 8]; `coder`: counts [channels,
    255] of the range coder (None: it is not used); `alpha`: real over counted bits."""

    encoder: Encoder
    shape: DecoderShape
    decoders: Mapping[int, Mapping[str, F32]]
    pair: ColourPair
    tables: U8
    coder: I64 | None = None
    task: str = ""
    alpha: float = 1.0
    path: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)
    threads: int = 0

    def __post_init__(self) -> None:
        self._opened: dict[int, OnnxDecoder] = {}
        most = len(self.encoder.patches)
        if any(not 1 <= count <= most for count in self.decoders):
            raise UserError(f"a decoder is of more channels than the encoder's {most}.", field="n_trained")
        shape = self.tables.shape
        if len(shape) != 4 or shape[1:] != (3, 8, 8) or not shape[0] or (self.tables < 1).any():
            raise UserError("a codec has sets of three tables with entries from 1 to 255.", field="tables")
        if self.coder is not None and (self.coder.shape != (most, 255) or (self.coder < 1).any()):
            raise UserError("the range coder has 255 counts above zero a channel.", field="coder")

    @classmethod
    def open(cls, name: str | os.PathLike[str] = BUNDLED) -> Codec:
        """A codec that ships (photo), a pack, or a published checkpoint's folder (which has no sandwich: its
        colours are JFIF's). Raises UserError, DamagedFileError."""
        path = codec_path(name)
        if path.is_file():
            raise UserError(f"{path} is a file; a codec is a folder.", field="codec", given=str(path))
        if not is_pack(path):
            return _published(HubFolder.open(path))
        pack = Pack.open(path)
        if pack.record.kind != "codec" or pack.record.architecture.get("name") != ARCHITECTURE:
            raise UserError(
                f"{path} is a {pack.record.kind} pack, not a codec's.",
                field="codec",
                given=str(path),
                nearest=BUNDLED,
            )
        pack.verify_once()
        try:
            return _of_pack(pack)
        except DamagedFileError:
            raise
        except (UserError, ValueError, KeyError, TypeError) as error:
            raise DamagedFileError(path, f"its parts do not fit ({error})", field="codec") from error

    def write(self, path: Path, provenance: Mapping[str, Any]) -> None:
        """A pack of kind codec, whole or not at all; decoders are kept as f16."""
        with PackWriter(path, "codec") as writer:
            for at, scale in enumerate(self.encoder.scales):
                for part in PARTS:
                    _add(writer, f"encoders.{at}.{part}", "f32", getattr(scale, part))
            for name, one in _pair_tensors(self.pair).items():
                _add(writer, name, "f32", one)
            _add(writer, "tables", "u8", self.tables)
            if self.coder is not None:
                _add(writer, "coder", "i32", self.coder)
            for count, tensors in sorted(self.decoders.items()):
                for name in self.shape.expected(self.encoder.patches[:count]):
                    _add(writer, f"merged.{count}.decoder.{name}", "f16", tensors[name])
            architecture = {
                "name": ARCHITECTURE,
                "ps": list(self.encoder.patches),
                "decoder_ps": self.shape.grid,
                "decoder_dim": self.shape.width,
                "arch": self.shape.arch,
                "n_trained": sorted(self.decoders),
                "encoder": f"{self.encoder.id:08x}",
                "variant": self.pair.variant,
                "pair": self.pair.id,
                "task": self.task,
                "alpha": self.alpha,
            }
            writer.finish(
                {"architecture": architecture, "plan": {"cut": "seaotter"}, "provenance": dict(provenance)}
            )

    def encode(self, picture: U8, channels: int | None = None, coder: str = "smallest") -> bytes:
        """What the sensor sends of a picture u8 [h, w, 3]."""
        stream = self.encoder.encode(picture, max(self.decoders) if channels is None else channels)
        return write_stream(stream, self._counts(stream.channels), coder)

    def encode_within(self, picture: U8, most: int, coder: str = "smallest") -> bytes:
        """The longest code that has a decoder and takes at most `most` bytes. Raises UserError where none
        does."""
        whole = self.encoder.encode(picture, max(self.decoders))
        sent = b""
        for count in sorted(self.decoders, reverse=True):
            sent = write_stream(whole.first(count), self._counts(count), coder)
            if len(sent) <= most:
                return sent
        raise UserError(
            f"the shortest code of this picture takes {len(sent)} bytes, more than {most}.",
            field="max-bytes",
            given=most,
            nearest=len(sent),
        )

    def read(self, data: bytes, name: str = "the stream") -> Stream:
        """The latents of a stream. Raises UserError for one of another encoder."""
        stream = read_stream(data, self.encoder.patches, self._counts(len(self.encoder.patches)), name)
        if stream.encoder != self.encoder.id:
            raise UserError(
                f"{name} is of the encoder {stream.encoder:08x}, and this codec decodes "
                f"{self.encoder.id:08x}; give the codec of the sensor, or one tuned from it.",
                field="codec",
                given=f"{stream.encoder:08x}",
                nearest=f"{self.encoder.id:08x}",
            )
        return stream

    def rebuild(self, stream: Stream, channels: int | None = None) -> U8:
        """The decoder's picture: of the longest code that has a decoder and that the stream begins with, or
        of `channels`."""
        wanted = stream.channels if channels is None else channels
        fitting = [count for count in self.decoders if count <= min(wanted, stream.channels)]
        if not fitting or (channels is not None and channels not in fitting):
            raise not_allowed("channels", wanted, sorted(self.decoders))
        return self._decoder(max(fitting)).picture(stream)

    def transcode(
        self, data: bytes, *, table: int = 1, channels: int | None = None, name: str = "the stream"
    ) -> bytes:
        """The JPEG that the cloud keeps of a stream; `table` counts from 1."""
        if not 1 <= table <= len(self.tables):
            raise not_allowed("table", table, range(1, len(self.tables) + 1))
        picture = self.rebuild(self.read(data, name), channels)
        return write_jpeg(self.pair.to_planes(picture), self.tables[table - 1], self.pair.id, self.task)

    def consumer(self) -> Pair:
        """What reads the JPEGs."""
        return Pair(self.pair, self.task)

    def _decoder(self, count: int) -> OnnxDecoder:
        if count not in self._opened:
            own = self.encoder.patches[:count]
            self._opened[count] = OnnxDecoder(self.decoders[count], own, self.shape, self.threads)
        return self._opened[count]

    def _counts(self, channels: int) -> Sequence[I64] | None:
        return None if self.coder is None else list(self.coder[:channels])


def codec_findings(path: Path) -> list[Finding]:
    """What is wrong with the parts of a codec's pack, whose bytes are whole."""
    try:
        codec = Codec.open(path)
        for count, tensors in codec.decoders.items():
            for name, shape in codec.shape.expected(codec.encoder.patches[:count]).items():
                if (
                    name not in tensors
                    or tensors[name].shape != shape
                    or not np.isfinite(tensors[name]).all()
                ):
                    return [
                        Finding("weights.safetensors", f"merged.{count}.decoder.{name} is not {list(shape)}")
                    ]
    except DamagedFileError as error:
        return [Finding("pack.json", error.what)]
    return []


def _add(writer: PackWriter, name: str, kind: str, values: NDArray[Any]) -> None:
    array = np.ascontiguousarray(values, KINDS[kind])
    writer.add_tensor(name, kind, array.shape, [array.tobytes()])


def _arrays(source: TensorSource) -> dict[str, NDArray[Any]]:
    found = {}
    for name, entry in source.tensors.items():
        if entry.kind == "bf16":
            raw = np.frombuffer(source.bytes(name), "<u2").astype(np.uint32) << 16
            found[name] = raw.view(np.float32).reshape(entry.shape)
        elif entry.kind in KINDS and entry.nbytes <= NUMBERS_MOST * 4:
            array = np.frombuffer(source.bytes(name), KINDS[entry.kind]).reshape(entry.shape)
            found[name] = array.astype(np.float32) if entry.kind in ("f32", "f16") else array
    return found


def _pair_tensors(pair: ColourPair) -> dict[str, F32]:
    halves = (("forward", pair.forward), ("inverse", pair.inverse))
    return {f"sandwich.{name}.{part}": getattr(half, part) for name, half in halves for part in PARTS}


def _pair(arrays: Mapping[str, NDArray[Any]], variant: str, path: Path) -> ColourPair:
    try:
        halves = [
            Half(*(arrays[f"sandwich.{name}.{part}"] for part in PARTS)) for name in ("forward", "inverse")
        ]
        return ColourPair(variant, halves[0], halves[1])
    except (KeyError, UserError) as error:
        raise DamagedFileError(path, f"it holds no colour pair ({error})", field="pair") from error


def _decoders(arrays: Mapping[str, NDArray[Any]], counts: Sequence[Any]) -> dict[int, dict[str, F32]]:
    made: dict[int, dict[str, F32]] = {}
    for count in counts:
        prefix = f"merged.{int(count)}.decoder."
        made[int(count)] = {
            name[len(prefix) :]: one for name, one in arrays.items() if name.startswith(prefix)
        }
    return made


def _of_pack(pack: Pack) -> Codec:
    arrays, said = _arrays(pack), pack.record.architecture
    encoder = encoder_of(arrays)
    if list(encoder.patches) != said["ps"] or f"{encoder.id:08x}" != said["encoder"]:
        raise ValueError("the encoder is not the one that the record names")
    pair = _pair(arrays, str(said["variant"]), pack.path)
    if pair.id != said["pair"]:
        raise ValueError("the colour pair is not the one that the record names")
    return Codec(
        encoder,
        DecoderShape(int(said["decoder_ps"]), int(said["decoder_dim"]), str(said["arch"])),
        _decoders(arrays, said["n_trained"]),
        pair,
        np.asarray(arrays["tables"]),
        np.asarray(arrays["coder"], np.int64) if "coder" in arrays else None,
        str(said.get("task", "")),
        float(said.get("alpha", 1.0)),
        pack.path,
        dict(said),
    )


def _published(folder: HubFolder) -> Codec:
    """A published checkpoint: config.json with ps, decoder_ps, decoder_dim, arch, n_trained; no sandwich."""
    from haversack.share.seaotter import plain_pair

    config = folder.config
    missing = [
        name for name in ("ps", "decoder_ps", "decoder_dim", "arch", "n_trained") if name not in config
    ]
    if missing:
        raise UserError(
            f"{folder.path}/config.json has no {', '.join(missing)}.", field="codec", given=str(folder.path)
        )
    arrays = _arrays(folder)
    encoder = encoder_of(arrays)
    if list(encoder.patches) != list(config["ps"]):
        raise DamagedFileError(folder.path, "its encoders are not those of ps in config.json", field="codec")
    trained = config["n_trained"]
    counts = (
        trained
        if isinstance(trained, list)
        else sorted(
            {int(name.split(".")[1]) for name in arrays if name.startswith("merged.") and ".decoder." in name}
        )
    )
    shape = DecoderShape(int(config["decoder_ps"]), int(config["decoder_dim"]), str(config["arch"]))
    tables = np.full((1, 3, 8, 8), 8, np.uint8)
    return Codec(
        encoder, shape, _decoders(arrays, counts), plain_pair(), tables, path=folder.path, record=dict(config)
    )
