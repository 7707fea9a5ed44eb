"""A speech model's checkpoint, opened: its tensors under the names its architecture asks for.

Convolutions are seen as the matrices that they are, and a tensor that holds two matrices as both; nothing is
copied.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, TensorEntry, TensorSource
from haversack.models._checkpoint import checkpoint
from haversack.models._tokenizer import Tokenizer
from haversack.models.audio import SPEECH, is_speech, read_speech
from haversack.models.audio._generation import Rules, read_rules
from haversack.models.audio._record import SpeechArchitecture
from haversack.run._source import open_source
from haversack.run._weights import check_tensors

PREPROCESSOR = {"sampling_rate": 16_000, "n_fft": 400, "hop_length": 160}
MOST = 4 << 20


class Flat:
    """`source` with its convolutions [outputs, channels, taps] as matrices [outputs, channels * taps]."""

    def __init__(self, source: TensorSource, architecture: SpeechArchitecture) -> None:
        self.source = source
        flat = {one.matrix.weight: one for one in architecture.encoder.stem}
        self.tensors: dict[str, TensorEntry] = {}
        for name, entry in source.tensors.items():
            convolution = flat.get(name) or flat.get(f"model.{name}")
            if convolution is not None and entry.shape == convolution.shape:
                shape = (convolution.matrix.outputs, convolution.matrix.inputs)
                entry = msgspec.structs.replace(entry, shape=shape)
            self.tensors[name] = entry

    @property
    def path(self) -> Path:
        """The folder."""
        return self.source.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tensors."""
        return self.source.files

    def bytes(self, name: str) -> memoryview:
        """See TensorSource."""
        return self.source.bytes(name)


@dataclass(frozen=True)
class SpeechModel:
    """An opened speech model: `source` bears the architecture's names, `config` is that of the hub, `rules`
    say how text is written. `plan` is empty for a folder."""

    source: TensorSource
    opened: TensorSource
    architecture: SpeechArchitecture
    config: Mapping[str, Any]
    rules: Rules
    plan: Mapping[str, Any]
    activations: str

    @property
    def path(self) -> Path:
        """The folder."""
        return self.source.path

    @property
    def pack(self) -> Pack | None:
        """The pack it came from."""
        return self.opened if isinstance(self.opened, Pack) else None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the weights. Raises UserError when there is none or it does not fit."""
        if isinstance(self.opened, Pack):
            path = self.path / "tokenizer.json"
            tokenizer = Tokenizer.of_bytes(self.opened.read_file("tokenizer.json"), path)
        else:
            path = self.path
            tokenizer = Tokenizer.of_folder(path)
        largest = max(tokenizer.table().values(), default=-1)
        if largest >= self.architecture.vocabulary:
            raise UserError(
                f"{path} has a token number {largest} and the model {self.architecture.vocabulary} tokens: "
                "it belongs to another model.",
                field="tokenizer",
                given=largest,
                nearest=self.architecture.vocabulary - 1,
            )
        return tokenizer


def config_of(source: TensorSource) -> dict[str, Any]:
    """The hub config of an opened pack or folder."""
    if isinstance(source, Pack):
        return dict(source.record.architecture)
    return dict(getattr(source, "config", {}))


def open_speech(what: str | os.PathLike[str] | TensorSource | SpeechModel) -> SpeechModel:
    """Open a speech model from a pack, a checkpoint folder or what `open_source` gave; only headers are read.

    Raises UserError for what is none, for a tensor of another shape, and for a preprocessor that hears
    otherwise; DamagedFileError for a tensor that is missing.
    """
    if isinstance(what, SpeechModel):
        return what
    source = open_source(what)
    config = config_of(source)
    if not is_speech(config):
        raise UserError(
            f"{source.path} is no speech model (its model_type is {config.get('model_type')!r}; speech "
            f"models are {' and '.join(SPEECH)}).",
            field="model",
            given=config.get("model_type"),
            nearest="whisper",
        )
    architecture = read_speech(config)
    view = source
    if not isinstance(source, Pack):
        flat: TensorSource = Flat(source, architecture)
        view = checkpoint(flat, architecture)  # type: ignore[arg-type]  # it asks for names and shapes
    check_tensors(view, architecture)  # type: ignore[arg-type]
    rules = read_rules(config, _table(source, "generation_config.json"), architecture)
    _check_preprocessor(source.path, _table(source, "preprocessor_config.json"), architecture)
    plan: dict[str, Any] = dict(source.record.plan) if isinstance(source, Pack) else {}
    activations = "f32"
    if isinstance(source, Pack):
        activations = str(plan.get("activations") or source.record.activations)
    return SpeechModel(view, source, architecture, config, rules, plan, activations)


def _table(source: TensorSource, name: str) -> dict[str, Any]:
    """A JSON file beside the weights, empty when there is none."""
    from haversack.formats.safetensors import read_json

    path = source.path / name
    if isinstance(source, Pack) and name not in source.record.files:
        return {}
    if not path.is_file():
        return {}
    if isinstance(source, Pack):
        data = source.read_file(name)
        try:
            found = msgspec.json.decode(data)
        except msgspec.DecodeError as error:
            raise DamagedFileError(path, "it is not JSON") from error
        if not isinstance(found, dict):
            raise DamagedFileError(path, "it is not a table of names and values")
        return found
    return read_json(path, MOST)


def _check_preprocessor(path: Path, table: Mapping[str, Any], architecture: SpeechArchitecture) -> None:
    """Raises UserError where the folder's preprocessor hears otherwise than this family's front end.

    Its padding and its length of a chunk are not looked at: a window is as long as the encoder's positions.
    """
    bands = architecture.encoder.bands
    wanted: dict[str, Any] = dict(PREPROCESSOR) if bands is not None else {"sampling_rate": 16_000}
    wanted |= {"feature_size": 1 if bands is None else bands, "do_normalize": False, "dither": 0.0}
    for name, value in wanted.items():
        given = table.get(name)
        if given is not None and given != value:
            raise UserError(
                f"{path}: {name}={given!r} in preprocessor_config.json is not supported (allowed {value!r}).",
                field=name,
                given=given,
                nearest=value,
            )
