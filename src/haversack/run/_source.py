"""What can be run, opened: a pack, a checkpoint folder or a bundled model, with its architecture and
tokenizer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haversack.core._record import PREDICTOR_NAME, STORE_NAME, STORE_RECORDS
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, TensorSource, is_pack
from haversack.models._architecture import Architecture
from haversack.models._checkpoint import checkpoint
from haversack.models._gguf import GgufModel, is_gguf
from haversack.models._tokenizer import Tokenizer
from haversack.models.audio import is_speech
from haversack.models.language import is_encoder, read_architecture
from haversack.run._forms import forms_of, require_whole
from haversack.run._weights import refuse_second_head

ADVICE = "give a pack, a checkpoint folder or a bundled model"


@dataclass(frozen=True)
class Model:
    """An opened source: its `architecture`, the `plan` it was packed with (empty for a folder; where a GGUF
    file's blocks are put in order, weights are copied), the type of
    `activations` its plan wants, and the tokens that end a text."""

    source: TensorSource
    architecture: Architecture
    plan: Mapping[str, Any]
    activations: str
    end_of_text: tuple[int, ...]

    @property
    def path(self) -> Path:
        """The folder."""
        return self.source.path

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that lies beside the weights. Raises UserError when there is none, DamagedFileError
        when
        it is none or does not fit the model."""
        path = self.path / "tokenizer.json"
        if isinstance(self.source, Pack):
            tokenizer = Tokenizer.of_bytes(self.source.read_file("tokenizer.json"), path)
        elif isinstance(self.source, GgufModel):
            path = self.path
            tokenizer = self.source.tokenizer()
        else:
            tokenizer = Tokenizer.of_folder(self.path)
            path = Path(str(tokenizer.path))
        if tokenizer.size > self.architecture.vocabulary:
            raise UserError(
                f"{path} has {tokenizer.size} tokens and the model {self.architecture.vocabulary}: it "
                "belongs to "
                "another model.",
                field="tokenizer",
                given=tokenizer.size,
                nearest=self.architecture.vocabulary,
            )
        return tokenizer


def open_source(what: str | os.PathLike[str] | TensorSource) -> TensorSource:
    """A pack, a checkpoint folder, a GGUF file or a bundled model, opened; raises like `open_model`."""
    if not isinstance(what, str | os.PathLike):
        return what
    path = Path(what)
    if is_pack(path):
        return Pack.open(path)
    if is_gguf(path):
        return GgufModel.open(path)
    from haversack.models._borrowed import open_folder
    from haversack.models._bundled import model_folder

    return open_folder(model_folder(str(what)))


def encodes(source: TensorSource) -> bool:
    """True when an opened source holds an encoder, which `run/_encoder.py` opens."""
    return is_encoder(_config(source))


def traits_of(source: TensorSource) -> tuple[str, ...]:
    """What an opened source provides to the methods of a run."""
    if not isinstance(source, Pack):
        return ()
    found = ["sealed-weights"] if source.sealed else []
    if PREDICTOR_NAME in source.record.files:
        found.append("head-predictor")
    if STORE_NAME in source.record.files:
        parts = source.record.provenance.get(STORE_RECORDS) == "parts"
        found.append("expert-store:matrices" if parts else "expert-store:experts")
    forms = {form["form"] for form in forms_of(source).values()}
    if "nested" in forms:
        found.append("weight-type:nested")
    if "shadow" in forms:
        found.append("shadow-outliers")
    return tuple(found)


def hears(source: TensorSource) -> bool:
    """True when an opened source holds a speech model, which `run/_speech.py` opens."""
    return is_speech(_config(source))


def _config(source: TensorSource) -> Mapping[str, Any]:
    found = source.record.architecture if isinstance(source, Pack) else getattr(source, "config", {})
    return dict(found)


def kind_of(architecture: Architecture) -> tuple[str, ...]:
    """The traits of a run's methods that follow from what a model is."""
    return () if architecture.reader is None else ("encoder-decoder",)


def open_model(what: str | os.PathLike[str] | TensorSource, *, reader: bool = False) -> Model:
    """Open a pack, a checkpoint folder, a GGUF file or a bundled model; only headers are read. With `reader`
    an encoder with a decoder as well.

    Raises UserError for what is none of them, DamagedFileError for one that does not hold.
    """
    source: Any = open_source(what)
    if isinstance(source, Pack):
        return _of_pack(source, reader)
    if isinstance(source, GgufModel):
        source.refuse_blocking()
        kinds = source.quantized()
        stored = ", ".join(sorted(set(kinds.values())))
        plan = {"residency": "copied", "precision": f"as stored ({stored})"} if kinds else {}
        activations = "int8-dynamic" if kinds else "f32"
        return Model(source, source.architecture, plan, activations, source.architecture.end_of_text)
    config = dict(source.config)
    architecture = read_architecture(config, reader=reader)
    refuse_second_head(source, architecture)
    return Model(checkpoint(source, architecture), architecture, {}, "f32", _ends(source.path, architecture))


def _of_pack(pack: Pack, reader: bool) -> Model:
    if pack.record.kind != "language":
        raise UserError(
            f"{pack.path} is a {pack.record.kind} pack; this engine runs language packs.",
            field="pack",
            given=pack.record.kind,
            nearest="language",
        )
    require_whole(pack)
    architecture = read_architecture(pack.record.architecture, reader=reader)
    plan = dict(pack.record.plan)
    activations = str(plan.get("activations") or pack.record.activations)
    return Model(pack, architecture, plan, activations, _ends(pack.path, architecture))


def _ends(folder: Path, architecture: Architecture) -> tuple[int, ...]:
    """End tokens of the config and of generation_config.json, which is where chat models name more of
    them.
    """
    found = list(architecture.end_of_text)
    path = folder / "generation_config.json"
    if path.is_file():
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DamagedFileError(path, "it is not JSON") from error
        named = said.get("eos_token_id") if isinstance(said, dict) else None
        for token in named if isinstance(named, list) else [named]:
            if (
                isinstance(token, int)
                and not isinstance(token, bool)
                and 0 <= token < architecture.vocabulary
            ):
                found.append(token)
    return tuple(dict.fromkeys(found))
