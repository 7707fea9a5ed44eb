"""An encoder's checkpoint, opened: its tensors under the names its architecture asks for.

Checkpoints of one model bear several names: with the model's prefix (`bert.`) or without it, norms as gamma
and beta, output biases twice. Nothing is copied; a renamed tensor is the same bytes.
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
from haversack.models._tokenizer import Tokenizer
from haversack.models.language import is_encoder, read_encoder
from haversack.models.language._encoder import EncoderArchitecture
from haversack.run._forms import forms_of, require_whole, stored_names
from haversack.run._pooling import Pooling, read_pooling
from haversack.run._source import open_source
from haversack.run._weights import check_tensors


class Renamed:
    """`source` under other names: `names` is new name -> name in `source`; other tensors are left out."""

    def __init__(self, source: TensorSource, names: Mapping[str, str]) -> None:
        self.source = source
        self.path = source.path
        self.files = source.files
        held = forms_of(source)
        self.forms = {name: held[old] for name, old in names.items() if old in held}
        self._names = {
            stored: f"{old}{stored.removeprefix(name)}"
            for name, old in names.items()
            for stored in stored_names(self, [name])
        }
        self.tensors: dict[str, TensorEntry] = {
            name: msgspec.structs.replace(source.tensors[old], name=name)
            for name, old in self._names.items()
            if old in source.tensors
        }

    def bytes(self, name: str) -> memoryview:
        """See TensorSource."""
        return self.source.bytes(self._names[name])


@dataclass(frozen=True)
class EncoderModel:
    """An opened encoder: `source` bears the architecture's names; `config` is that of the hub. `plan` is
    empty for a folder."""

    source: Renamed
    architecture: EncoderArchitecture
    config: Mapping[str, Any]
    plan: Mapping[str, Any]
    activations: str
    pooling: Pooling

    @property
    def path(self) -> Path:
        """The folder."""
        return self.source.path

    @property
    def pack(self) -> Pack | None:
        """The pack it came from."""
        return self.source.source if isinstance(self.source.source, Pack) else None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the weights. Raises UserError when there is none or it does not fit."""
        inner = self.source.source
        if isinstance(inner, Pack):
            path = self.path / "tokenizer.json"
            tokenizer = Tokenizer.of_bytes(inner.read_file("tokenizer.json"), path)
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


def open_encoder(what: str | os.PathLike[str] | TensorSource | EncoderModel) -> EncoderModel:
    """Open an encoder from a pack, a checkpoint folder or what `open_source` gave; only headers are read.

    Raises UserError for what is no encoder, and for a tensor that is missing or has another shape.
    """
    if isinstance(what, EncoderModel):
        return what
    source = open_source(what)
    config = config_of(source)
    if not is_encoder(config):
        raise UserError(
            f"{source.path} is no encoder (its model_type is {config.get('model_type')!r}; encoders are "
            "bert, roberta and xlm-roberta).",
            field="model",
            given=config.get("model_type"),
            nearest="bert",
        )
    architecture = read_encoder(config)
    named, architecture = aligned(source, architecture)
    check_tensors(named, architecture)  # type: ignore[arg-type]
    if isinstance(source, Pack):
        plan = dict(source.record.plan)
        pooling = Pooling.of_record(plan.get("pooling"))
        activations = str(plan.get("activations") or source.record.activations)
        return EncoderModel(named, architecture, config, plan, activations, pooling)
    pooling = read_pooling(source.path, architecture.width)
    return EncoderModel(named, architecture, config, {}, "f32", pooling)


def aligned(source: TensorSource, architecture: EncoderArchitecture) -> tuple[Renamed, EncoderArchitecture]:
    """`source` under the names of `architecture`, and the architecture without a pooler where there is none.

    A pooler that only serves the pooled output may be absent; half of one is damage.
    """
    require_whole(source)
    held: dict[str, Any] = {**source.tensors, **forms_of(source)}
    if architecture.pooler is not None and (architecture.head is None or architecture.head.dense is None):
        names = [name for name, _ in architecture.pooler.tensors()]
        if not any(_found(name, architecture, held) for name in names):
            architecture = architecture.without_pooler()
    found = {}
    for name in architecture.tensors():
        held_name = _found(name, architecture, held)
        if held_name is None:
            raise DamagedFileError(source.path, _missing(name, architecture, held), field=name)
        found[name] = held_name
    return Renamed(source, found), architecture


def _found(name: str, architecture: EncoderArchitecture, held: Mapping[str, Any]) -> str | None:
    """The name under which `held` has the tensor `name`."""
    prefix = architecture.prefix
    other = name.removeprefix(prefix) if name.startswith(prefix) else prefix + name
    for spelled in (name, other, architecture.aliases.get(name, name)):
        older = spelled.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        )
        for choice in (spelled, older):
            if choice in held:
                return choice
    return None


def _missing(name: str, architecture: EncoderArchitecture, held: Mapping[str, Any]) -> str:
    from haversack.core.errors import nearest_name

    head = architecture.head
    if head is not None and name in dict(head.tensors()):
        return (
            f"the tensor {name} of its {head.kind} head is missing; a checkpoint without a head has "
            "architectures that end in Model"
        )
    nearest = nearest_name(name, held)
    return f"the tensor {name} is missing" + (f" (the nearest it holds is {nearest})" if nearest else "")
